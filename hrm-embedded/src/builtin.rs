//! The models inside the program: those of the repository's `models/` folder that existed when it was built.

/// Bytes at a multiple of 16, as [`hrm_core::ModelView::new_checked`] wants them.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The file of the embedded Sudoku model of this size, aligned to 16 bytes; none if the build had none.
#[must_use]
pub fn bytes(size: u8) -> Option<&'static [u8]> {
    EMBEDDED.iter().find(|(n, _)| *n == size).map(|(_, model)| &model.0)
}

/// The sizes with an embedded model, ascending.
pub fn sizes() -> impl Iterator<Item = u8> {
    EMBEDDED.iter().map(|&(n, _)| n)
}
