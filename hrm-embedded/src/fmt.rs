//! Messages through `defmt` on devices, `log` elsewhere, or not at all: features of these names.

macro_rules! debug {
    ($text:literal $(, $value:expr)* $(,)?) => {{
        #[cfg(all(feature = "defmt", target_os = "none"))]
        defmt::debug!($text $(, $value)*);
        #[cfg(feature = "log")]
        log::debug!($text $(, $value)*);
        #[cfg(not(any(all(feature = "defmt", target_os = "none"), feature = "log")))]
        { $( let _ = &$value; )* }
    }};
}

pub(crate) use debug;
