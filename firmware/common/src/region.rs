//! The model's own region of flash. A `.hrm` file lies at its start and is read in place; its header (magic, version, length, CRC-32,
//! self-test vector) says whether what lies there is a model, so it can be replaced without a new program.

use core::slice;

use hrm_embedded::hrm_core::{FormatError, ModelView};

unsafe extern "C" {
    // Set by `memory.x`.
    static __model_start: u8;
    static __model_end: u8;
}

/// The region, whatever it holds.
#[must_use]
pub fn bytes() -> &'static [u8] {
    let (start, end) = (&raw const __model_start, &raw const __model_end);
    // SAFETY: `memory.x` gives both symbols the bounds of one readable memory that nothing in the program writes to.
    unsafe { slice::from_raw_parts(start, end as usize - start as usize) }
}

/// The model in the region.
///
/// # Errors
/// There is none, or it is damaged; the error says what was found and what was expected.
pub fn model() -> Result<ModelView<'static>, FormatError> {
    ModelView::in_region(bytes())
}
