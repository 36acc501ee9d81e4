//! Memory of hosts that begins with a cache line: registers of 64 bytes are read and written there at half the cost of any other place.

use std::ops::{Deref, DerefMut};
use std::vec::Vec;

use crate::memory::LINE;

/// `len` elements from the beginning of a cache line on, for arenas and packed weights. Moving it leaves them where they are.
#[derive(Debug, Default)]
pub struct Aligned<T> {
    memory: Vec<T>,
    first: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// As many default values.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let memory = std::vec![T::default(); len + LINE / size_of::<T>().max(1)];
        let first = memory.as_ptr().align_offset(LINE).min(memory.len() - len);
        Self { memory, first, len }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.first..self.first + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.first..self.first + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelView, Network, Plan, Run, testing};

    #[test]
    fn begins_with_a_line_wherever_it_is() {
        for len in [0, 1, 7, 1000] {
            let memory = Box::new(Aligned::<i32>::new(len));
            assert_eq!((memory.len(), memory.as_ptr().addr() % LINE), (len, 0));
            assert_eq!(memory.iter().sum::<i32>(), 0);
        }
        assert_eq!(Aligned::<u64>::default().len(), 0);
    }

    /// In an arena of a host every region begins with a line, so that one more line is enough for any arena.
    #[test]
    fn regions_of_a_host_are_whole_lines() {
        for (name, config) in testing::configs() {
            let file = testing::random_model(&config, 1).unwrap();
            let network = Network::reference(ModelView::new_checked(file.as_slice()).unwrap());
            let bytes = network.required_bytes(Plan::HOST);
            assert_eq!(bytes % LINE, 0, "{name}");
            Run::new(network, &mut Aligned::new(bytes / 8), Plan::HOST).unwrap();
        }
    }
}
