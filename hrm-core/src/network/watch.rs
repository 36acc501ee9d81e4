//! What a segment consists of, for those who want to see it done.

use core::fmt;

/// A place in a segment: where [`Run::segment_watched`](super::Run::segment_watched) looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Place {
    /// H cycle, from 0.
    pub h_cycle: u8,
    /// L cycle, from 0; `None` in the module that updates z_H.
    pub l_cycle: Option<u8>,
    /// Layer of the module, from 0.
    pub layer: u8,
}

impl fmt::Display for Place {
    /// `H0.L1.2`: layer 2 in L cycle 1 of H cycle 0; `H0.2`: layer 2 of the update of z_H.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.l_cycle {
            Some(l) => write!(f, "H{}.L{l}.{}", self.h_cycle, self.layer),
            None => write!(f, "H{}.{}", self.h_cycle, self.layer),
        }
    }
}

/// A part of a segment that has just been done, as [`Run::segment_parts`](super::Run::segment_parts) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Part {
    /// The input added to z_L, or z_L to z_H.
    Input,
    /// Attention of a layer.
    Attention(Place),
    /// The gated MLP over the tokens of a layer.
    TokenMlp(Place),
    /// The gated MLP over the channels, with its group sums: the last of every layer.
    GatedMlp(Place),
    /// Answer and Q read from z_H.
    Heads,
}

/// Told of every part of a segment, with the tensor that it has changed (in two pieces; nothing for [`Part::Heads`]).
pub(super) type Watch<'w> = Option<&'w mut dyn FnMut(Part, [&[i16]; 2])>;
