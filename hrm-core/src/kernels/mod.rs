//! The integer kernels: `reference` is the law, every other file is one ISA and gives the same bits.
//!
//! [`Kernel`] chooses between them at run time; the operations are whole row blocks, so the choice costs nothing. This is the only
//! room with unsafe code, and only in the ISA files.

#[cfg(hrm_isa = "dsp")]
mod armv7em;
#[cfg(hrm_isa = "armv7m")]
mod armv7m;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod front;
#[cfg(target_arch = "aarch64")]
mod i8mm;
mod lines;
#[cfg(hrm_isa = "mve")]
mod mve;
#[cfg(target_arch = "aarch64")]
mod neon;
mod operands;
pub mod reference;
#[cfg(hrm_isa = "rv32im")]
mod rv32im;
#[cfg(hrm_isa = "rv32v")]
mod rv32v;
mod scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod simd128;
mod square;
pub mod tables;
mod tiled;
#[cfg(target_arch = "x86_64")]
mod vnni256;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod words;
#[cfg(target_arch = "x86_64")]
mod ymm;

pub use operands::{Bases, Columns, GroupInputs, Mlp, MlpScratch, Requant};

use crate::parts::{Broken, OrBroken, holds};

/// A kernel that this CPU can execute. Obtained from [`Kernel::best`] or [`Kernel::by_name`], which prove the CPU feature.
///
/// Its operations are [`Broken`] if their slices do not have the shapes they say; then what they have written means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    Reference,
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512VnniYmm,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(hrm_isa = "armv7m")]
    Armv7m,
    #[cfg(hrm_isa = "dsp")]
    Armv7em,
    #[cfg(hrm_isa = "mve")]
    Mve,
    #[cfg(hrm_isa = "rv32im")]
    Rv32im,
    #[cfg(hrm_isa = "rv32v")]
    Rv32v,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    I8mm,
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Simd128,
}

#[cfg(all(target_arch = "aarch64", any(test, feature = "std")))]
use std::arch::is_aarch64_feature_detected as detected;
#[cfg(all(target_arch = "x86_64", any(test, feature = "std")))]
use std::arch::is_x86_feature_detected as detected;

/// Whether this CPU has the features: asked at run time with `std`, else what the build was told.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
macro_rules! has {
    ($($feature:tt),+) => {{
        #[cfg(any(test, feature = "std"))]
        let found = $(detected!($feature))&&+;
        #[cfg(not(any(test, feature = "std")))]
        let found = $(cfg!(target_feature = $feature))&&+;
        found
    }};
}

/// Calls the function of this name of the file of the kernel's ISA.
macro_rules! dispatch {
    ($isa:expr, $function:ident($($arg:expr),*)) => {
        match $isa {
            Isa::Reference => reference::$function($($arg),*),
            Isa::Scalar => scalar::$function($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::$function($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => vnni256::vex::$function($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512VnniYmm => vnni256::evex::$function($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512vnni::$function($($arg),*),
            #[cfg(hrm_isa = "armv7m")]
            Isa::Armv7m => armv7m::$function($($arg),*),
            #[cfg(hrm_isa = "dsp")]
            Isa::Armv7em => armv7em::$function($($arg),*),
            #[cfg(hrm_isa = "mve")]
            Isa::Mve => mve::$function($($arg),*),
            #[cfg(hrm_isa = "rv32im")]
            Isa::Rv32im => rv32im::$function($($arg),*),
            #[cfg(hrm_isa = "rv32v")]
            Isa::Rv32v => rv32v::$function($($arg),*),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::$function($($arg),*),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => i8mm::$function($($arg),*),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => simd128::$function($($arg),*),
        }
    };
}

impl Kernel {
    /// The scalar kernel, which every machine has.
    pub const REFERENCE: Self = Self(Isa::Reference);

    /// All kernels that this CPU can execute, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let others = [
            has!("avx2").then_some(Self(Isa::Avx2)),
            has!("avx2", "avx512vl", "avx512vnni").then_some(Self(Isa::Avx512VnniYmm)),
            has!("avx2", "avxvnni").then_some(Self(Isa::AvxVnni)),
            has!("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd", "avx512vnni").then_some(Self(Isa::Avx512Vnni)),
        ];
        #[cfg(hrm_isa = "armv7m")]
        let others = [Some(Self(Isa::Armv7m))];
        #[cfg(hrm_isa = "dsp")]
        let others = [Some(Self(Isa::Armv7em))];
        #[cfg(hrm_isa = "mve")]
        let others = [Some(Self(Isa::Mve))];
        #[cfg(hrm_isa = "rv32im")]
        let others = [Some(Self(Isa::Rv32im))];
        #[cfg(hrm_isa = "rv32v")]
        let others = [Some(Self(Isa::Rv32v))];
        #[cfg(target_arch = "aarch64")]
        let others = [has!("dotprod").then_some(Self(Isa::Neon)), has!("i8mm").then_some(Self(Isa::I8mm))];
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        let others = [Some(Self(Isa::Simd128))];
        #[cfg(not(any(
            target_arch = "x86_64",
            target_arch = "aarch64",
            all(target_arch = "wasm32", target_feature = "simd128"),
            hrm_isa = "armv7m",
            hrm_isa = "dsp",
            hrm_isa = "mve",
            hrm_isa = "rv32im",
            hrm_isa = "rv32v"
        )))]
        let others = [None];
        [Self::REFERENCE, Self(Isa::Scalar)].into_iter().chain(others.into_iter().flatten())
    }

    /// The fastest kernel of this CPU.
    #[must_use]
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::REFERENCE)
    }

    /// The fastest kernel of this CPU that needs no packed weights. `armv7em` has a loop for them and one for the file's own.
    #[must_use]
    pub fn best_in_place() -> Self {
        match Self::best().0 {
            #[cfg(hrm_isa = "dsp")]
            Isa::Armv7em => Self(Isa::Armv7em),
            #[cfg(hrm_isa = "armv7m")]
            Isa::Armv7m => Self(Isa::Armv7m),
            #[cfg(hrm_isa = "rv32im")]
            Isa::Rv32im => Self(Isa::Rv32im),
            _ => Self(Isa::Scalar),
        }
    }

    /// The kernel of this name, if this CPU can execute it.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::available().find(|k| k.name() == name)
    }

    /// Its name: `reference`, `scalar` (register tiles without SIMD), or that of an instruction set.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Reference => "reference",
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512VnniYmm => "avx512vnni-ymm",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => "avx512vnni",
            #[cfg(hrm_isa = "armv7m")]
            Isa::Armv7m => "armv7m",
            #[cfg(hrm_isa = "dsp")]
            Isa::Armv7em => "armv7em",
            #[cfg(hrm_isa = "mve")]
            Isa::Mve => "mve",
            #[cfg(hrm_isa = "rv32im")]
            Isa::Rv32im => "rv32im",
            #[cfg(hrm_isa = "rv32v")]
            Isa::Rv32v => "rv32v",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => "i8mm",
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => "simd128",
        }
    }

    /// Multiply-accumulates on registers alone, to learn the peak of this CPU at its present clock: `rounds` of a few independent chains.
    /// Returns the MACs and a value that depends on all of them; `None` where the kernel has no such loop.
    #[must_use]
    pub fn multiply_only(self, rounds: usize) -> Option<(u64, i32)> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(avx2::multiply_only(rounds)),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some(vnni256::vex::multiply_only(rounds)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512VnniYmm => Some(vnni256::evex::multiply_only(rounds)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Some(avx512vnni::multiply_only(rounds)),
            _ => {
                let _ = rounds;
                None
            }
        }
    }

    /// Words that [`Kernel::pack`] needs for a block of `n` x `k` weights; 0 if this kernel reads weights in place.
    #[must_use]
    pub const fn packed_words(self, n: usize, k: usize) -> usize {
        dispatch!(self.0, packed_words(n, k))
    }

    /// Packs a block of columns into `out`, of [`Kernel::packed_words`] words.
    ///
    /// # Errors
    /// `out` has another length, or the block has fewer weights than it says.
    pub fn pack(self, w: &Columns<'_>, out: &mut [i32]) -> Result<(), Broken> {
        holds(out.len() == self.packed_words(w.n, w.k))?;
        if out.is_empty() {
            return Ok(());
        }
        dispatch!(self.0, pack(w, out))
    }

    /// `out = view8(x, m)` element by element; `1 <= m`.
    ///
    /// # Errors
    /// Another number of elements.
    pub fn view8(self, x: &[i16], m: i16, out: &mut [i8]) -> Result<(), Broken> {
        holds(x.len() == out.len())?;
        dispatch!(self.0, view8_slice(x, m, out));
        Ok(())
    }

    /// `out[r][n] = sum_k a[r][k] * w[n][k] + bases`; `a` `[R, K]`, `out` `[R, N]`.
    ///
    /// # Errors
    /// Other shapes, or a base outside its table.
    pub fn accumulate(self, a: &[i8], w: &Columns<'_>, bases: Option<&Bases<'_>>, out: &mut [i32]) -> Result<(), Broken> {
        same_rows((a.len(), w.k), (out.len(), w.n))?;
        dispatch!(self.0, accumulate(a, w, bases, out))
    }

    /// `out[r][n] = requant(W a + bases + bias)`; `a` `[R, K]`, `out` `[R, N]`.
    ///
    /// # Errors
    /// Other shapes, or a base outside its table.
    pub fn project(self, a: &[i8], w: &Columns<'_>, q: &Requant<'_>, bases: Option<&Bases<'_>>, out: &mut [i16]) -> Result<(), Broken> {
        same_rows((a.len(), w.k), (out.len(), w.n))?;
        dispatch!(self.0, project(a, w, q, bases, out))
    }

    /// Hidden values of the gated MLP: `gate_up` `[R, 2I]`, `out` `[R, I]`; `shift` (0 to 4) is that of the gate's unit.
    ///
    /// # Errors
    /// Other shapes.
    pub fn glu(self, gate_up: &[i16], inner: usize, shift: u32, out: &mut [i8]) -> Result<(), Broken> {
        same_rows((gate_up.len(), 2 * inner), (out.len(), inner))?;
        dispatch!(self.0, glu_rows(gate_up, inner, shift, out))
    }

    /// Hidden values of the gated MLP from its input: [`Kernel::project`] into `gate_up` (`[R, 2I]`, scratch), then [`Kernel::glu`].
    ///
    /// # Errors
    /// Other shapes, or a base outside its table.
    #[expect(clippy::too_many_arguments, reason = "two operations in one")]
    pub fn gated(
        self,
        a: &[i8],
        w: &Columns<'_>,
        q: &Requant<'_>,
        bases: Option<&Bases<'_>>,
        shift: u32,
        gate_up: &mut [i16],
        out: &mut [i8],
    ) -> Result<(), Broken> {
        let rows = same_rows((a.len(), w.k), (gate_up.len(), w.n))?;
        holds(out.len() == rows * (w.n / 2))?;
        match self.0 {
            #[cfg(hrm_isa = "armv7m")]
            Isa::Armv7m => armv7m::gated(a, w, q, bases, shift, gate_up, out),
            #[cfg(hrm_isa = "dsp")]
            Isa::Armv7em => armv7em::gated(a, w, q, bases, shift, gate_up, out),
            #[cfg(hrm_isa = "mve")]
            Isa::Mve => mve::gated(a, w, q, bases, shift, gate_up, out),
            #[cfg(hrm_isa = "rv32im")]
            Isa::Rv32im => rv32im::gated(a, w, q, bases, shift, gate_up, out),
            #[cfg(hrm_isa = "rv32v")]
            Isa::Rv32v => rv32v::gated(a, w, q, bases, shift, gate_up, out),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::gated(a, w, q, bases, shift, gate_up, out),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => i8mm::gated(a, w, q, bases, shift, gate_up, out),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => simd128::gated(a, w, q, bases, shift, gate_up, out),
            Isa::Scalar => scalar::gated(a, w, q, bases, shift, gate_up, out),
            _ => {
                self.project(a, w, q, bases, gate_up)?;
                self.glu(gate_up, w.n / 2, shift, out)
            }
        }
    }

    /// `x <- norm(sat16(x + d))` for each row of `width` elements.
    ///
    /// # Errors
    /// Another number of elements, or no whole rows.
    pub fn add_norm(self, x: &mut [i16], d: &[i16], width: usize) -> Result<(), Broken> {
        same_rows((x.len(), width), (d.len(), width))?;
        dispatch!(self.0, add_norm(x, d, width))
    }

    /// `x <- sat16(x + d)`, as far as both go.
    pub fn add(self, x: &mut [i16], d: &[i16]) {
        dispatch!(self.0, add(x, d));
    }

    /// `x <- sat16(x + sat16(h + e))`, as far as all three go.
    pub fn inject(self, x: &mut [i16], h: &[i16], e: &[i16]) {
        dispatch!(self.0, inject(x, h, e));
    }

    /// `x <- (x + 2^(shift-1)) >> shift`: the stream in the units of a sublayer's output, before they are added. `shift` is at most 12.
    pub fn scale_down(self, x: &mut [i16], shift: u32) {
        dispatch!(self.0, scale_down(x, shift));
    }

    /// The whole of [`Mlp`] on the rows of `x` (`[R, C]`), in place. Returns `false` and does nothing where this kernel has no such form, or
    /// not for this shape (whole registers) or scratch: then the caller does it step by step.
    pub fn gated_mlp(self, mlp: &Mlp<'_>, x: &mut [i16], scratch: &mut MlpScratch<'_>) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512vnni::gated_mlp(mlp, x, scratch),
            _ => {
                let _ = (mlp, x, scratch);
                false
            }
        }
    }

    /// Adds each row of `a` (`[R, C]`) to the sums (`[group rows, C]`) of its groups; `index` is `[R, G]`. Sums of at most 256 rows fit.
    ///
    /// # Errors
    /// Other shapes, or a group row outside the sums.
    pub fn group_sums(self, a: &[i8], channels: usize, index: &[u16], groupings: usize, sums: &mut [i16]) -> Result<(), Broken> {
        same_rows((a.len(), channels), (index.len(), groupings))?;
        dispatch!(self.0, group_sums(a, channels, index, groupings, sums))
    }
}

/// The number of whole rows of which both are made, given as (elements, elements of a row).
#[inline(always)]
fn same_rows(a: (usize, usize), b: (usize, usize)) -> Result<usize, Broken> {
    let rows = a.0.checked_div(a.1).or_broken()?;
    holds(rows * a.1 == a.0 && rows * b.1 == b.0)?;
    Ok(rows)
}
