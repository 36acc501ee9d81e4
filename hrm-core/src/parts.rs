//! Parts of slices without a panic: where one does not lie in the other, an invariant of the network is [`Broken`].
//!
//! Sizes come from the model file, which is checked completely when it is read, and from the plan of the memory, so what these functions are
//! asked for is there. Should it not be, a device must neither stop nor go on with something else: it says so and gives no answer.

use core::fmt;
use core::panic::Location;
use core::slice::{ChunksExact, ChunksExactMut, SliceIndex};

/// An invariant of the network does not hold: sizes that fit to each other by construction do not. That is never bad input but a mistake in
/// the program or memory that something else has written to, and whatever has been computed is worth nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Broken(&'static Location<'static>);

impl Broken {
    /// The caller's place.
    #[cold]
    #[must_use]
    #[track_caller]
    pub const fn here() -> Self {
        Self(Location::caller())
    }

    /// Name of the source file, without its folders, and line.
    #[must_use]
    pub fn place(&self) -> (&'static str, u32) {
        let file = self.0.file();
        (file.rsplit(['/', '\\']).next().unwrap_or(file), self.0.line())
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, line) = self.place();
        write!(f, "internal error at {file}:{line}")
    }
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Broken {
    fn format(&self, f: defmt::Formatter<'_>) {
        let (file, line) = self.place();
        defmt::write!(f, "internal error at {=str}:{=u32}", file, line);
    }
}

impl core::error::Error for Broken {}

/// Goes on only if `condition` holds.
#[inline(always)]
#[track_caller]
pub(crate) const fn holds(condition: bool) -> Result<(), Broken> {
    if condition { Ok(()) } else { Err(Broken::here()) }
}

/// What an [`Option`] holds, by an invariant.
pub(crate) trait OrBroken<T> {
    #[track_caller]
    fn or_broken(self) -> Result<T, Broken>;
}

impl<T> OrBroken<T> for Option<T> {
    #[inline(always)]
    #[track_caller]
    fn or_broken(self) -> Result<T, Broken> {
        match self {
            Some(value) => Ok(value),
            None => Err(Broken::here()),
        }
    }
}

/// Parts and rows of a slice.
pub(crate) trait Parts<T> {
    /// What `self[range]` is.
    #[track_caller]
    fn part<I: SliceIndex<[T]>>(&self, range: I) -> Result<&I::Output, Broken>;

    /// What `&mut self[range]` is.
    #[track_caller]
    fn part_mut<I: SliceIndex<[T]>>(&mut self, range: I) -> Result<&mut I::Output, Broken>;

    /// Rows of `width` elements, of which the slice is made.
    #[track_caller]
    fn rows(&self, width: usize) -> Result<ChunksExact<'_, T>, Broken>;

    /// The same, to write.
    #[track_caller]
    fn rows_mut(&mut self, width: usize) -> Result<ChunksExactMut<'_, T>, Broken>;

    /// Copies `from`, which is as long.
    #[track_caller]
    fn copy_of(&mut self, from: &[T]) -> Result<(), Broken>
    where
        T: Copy;
}

impl<T> Parts<T> for [T] {
    #[inline(always)]
    #[track_caller]
    fn part<I: SliceIndex<[T]>>(&self, range: I) -> Result<&I::Output, Broken> {
        self.get(range).or_broken()
    }

    #[inline(always)]
    #[track_caller]
    fn part_mut<I: SliceIndex<[T]>>(&mut self, range: I) -> Result<&mut I::Output, Broken> {
        self.get_mut(range).or_broken()
    }

    #[inline(always)]
    #[track_caller]
    fn rows(&self, width: usize) -> Result<ChunksExact<'_, T>, Broken> {
        holds(width > 0)?;
        let rows = self.chunks_exact(width);
        holds(rows.remainder().is_empty())?;
        Ok(rows)
    }

    #[inline(always)]
    #[track_caller]
    fn rows_mut(&mut self, width: usize) -> Result<ChunksExactMut<'_, T>, Broken> {
        holds(width > 0 && self.len().is_multiple_of(width))?;
        Ok(self.chunks_exact_mut(width))
    }

    #[inline(always)]
    #[track_caller]
    fn copy_of(&mut self, from: &[T]) -> Result<(), Broken>
    where
        T: Copy,
    {
        holds(self.len() == from.len())?;
        self.copy_from_slice(from);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn what_is_not_there_is_told_with_its_place() {
        let mut x = [1u8, 2, 3, 4];
        let backwards = |from: usize, to: usize| from..to;
        assert_eq!(x.part(1..3), Ok(&[2, 3][..]));
        assert_eq!(x.part(3), Ok(&4));
        let (error, line) = (x.part(1..5).unwrap_err(), line!());
        assert_eq!(error.place(), ("parts.rs", line));
        assert_eq!(error.to_string(), std::format!("internal error at parts.rs:{line}"));
        for error in [
            x.part(4).map(|_| ()),
            x.part_mut(backwards(2, 1)).map(|_| ()),
            x.part(backwards(usize::MAX, 0)).map(|_| ()),
            x.rows(0).map(|_| ()),
            x.rows(3).map(|_| ()),
            x.rows_mut(0).map(|_| ()),
            x.rows_mut(3).map(|_| ()),
            x.copy_of(&[1; 3]),
            x.copy_of(&[1; 5]),
            None::<()>.or_broken(),
            holds(false),
        ] {
            assert_eq!(error.unwrap_err().place().0, "parts.rs");
        }
        assert_eq!(x.rows(2).unwrap().count(), 2);
        assert_eq!(x.rows_mut(4).unwrap().count(), 1);
        x.copy_of(&[5; 4]).unwrap();
        assert_eq!(x, [5; 4]);
    }
}
