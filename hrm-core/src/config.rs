//! The architecture of one model.
//!
//! Letters used everywhere: `S` tokens, `P` prefix tokens, `F` fields a token, `C` channels, `I` inner width of the gated MLP,
//! `R = (P + S) * F` rows.

use core::fmt;

/// How the rows of the state exchange information inside a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Mixer {
    /// Attention of every token to every token (HRM).
    Attention,
    /// A gated MLP over the token axis (TRM's `mlp_t`).
    TokenMlp,
    /// The gated MLP reads the row and the sums over its groups.
    GroupSum,
    /// Attention inside groups: head `h` uses grouping `h mod G`.
    GroupAttention,
}

/// Where the carry of a fresh puzzle starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Start {
    /// One stored vector of `C` for z_H and one for z_L, the same for all rows.
    Fixed,
    /// Random per row and channel, from the seed of the run.
    Random,
}

/// The architecture of one model. `Copy`; valid once [`Config::validate`] has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// One module for both updates (TRM) or two (HRM).
    pub shared: bool,
    /// How rows are mixed.
    pub mixer: Mixer,
    /// Where a run starts.
    pub start: Start,
    /// Rotary position embedding on queries and keys (theta 10,000, `rotate_half` convention); attention mixers only.
    pub rope: bool,
    /// `S`: tokens of the task, 81 for a 9x9 Sudoku.
    pub tokens: u16,
    /// `P`: learned prefix tokens before the task's (HRM 1, TRM 16, structured 0).
    pub prefix: u16,
    /// Input vocabulary, with the padding token 0 (Sudoku 9x9: 11).
    pub vocab: u16,
    /// `F`: fields a token; 1, or the number of symbols.
    pub fields: u16,
    /// `C`: channels of a row.
    pub channels: u16,
    /// `I`: inner width of the gated MLP over channels.
    pub inner: u16,
    /// Inner width of the gated MLP over tokens; 0 without [`Mixer::TokenMlp`].
    pub token_inner: u16,
    /// Attention heads; 0 without attention.
    pub heads: u16,
    /// Number of groupings (row, column, box, cell, ..).
    pub groupings: u8,
    /// Blocks of the H module (of the shared module if `shared`).
    pub h_layers: u8,
    /// Blocks of the L module; equal to `h_layers` if `shared`.
    pub l_layers: u8,
    /// H updates a segment.
    pub h_cycles: u8,
    /// L updates for each H update.
    pub l_cycles: u8,
}

/// Why a [`Config`] cannot be built. Every variant names the field and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConfigError {
    /// A field is outside its range.
    Range {
        /// The field.
        field: &'static str,
        /// What was found.
        found: u32,
        /// Smallest allowed value.
        min: u32,
        /// Largest allowed value.
        max: u32,
    },
    /// A field does not fit to another.
    Conflict {
        /// The field.
        field: &'static str,
        /// What was found.
        found: u32,
        /// What was expected.
        expected: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Range { field, found, min, max } => write!(f, "config field `{field}` is {found}, expected {min} to {max}"),
            Self::Conflict { field, found, expected } => write!(f, "config field `{field}` is {found}, expected {expected}"),
        }
    }
}

impl core::error::Error for ConfigError {}

impl Config {
    /// `R`: rows of the state.
    #[must_use]
    pub const fn rows(&self) -> usize {
        (self.prefix as usize + self.tokens as usize) * self.fields as usize
    }

    /// Elements of one carry tensor, `R * C`.
    #[must_use]
    pub const fn state_len(&self) -> usize {
        self.rows() * self.channels as usize
    }

    /// Columns of the first matrix of the channel MLP: `C`, or `(1 + G) * C` with [`Mixer::GroupSum`].
    #[must_use]
    pub const fn mix_width(&self) -> usize {
        match self.mixer {
            Mixer::GroupSum => (1 + self.groupings as usize) * self.channels as usize,
            _ => self.channels as usize,
        }
    }

    /// Classes of the input embedding: 3 with fields (blank, this symbol, another), else the vocabulary.
    #[must_use]
    pub const fn input_classes(&self) -> usize {
        if self.fields > 1 { 3 } else { self.vocab as usize }
    }

    /// Outputs of the head for one row: 1 with fields, else the vocabulary.
    #[must_use]
    pub const fn head_width(&self) -> usize {
        if self.fields > 1 { 1 } else { self.vocab as usize }
    }

    /// Modules stored: 1 if shared, else 2 (0 = L, 1 = H).
    #[must_use]
    pub const fn modules(&self) -> usize {
        if self.shared { 1 } else { 2 }
    }

    /// Blocks of stored module `m` (0 = L or the shared one, 1 = H).
    #[must_use]
    pub const fn layers(&self, m: usize) -> usize {
        if m == 0 { self.l_layers as usize } else { self.h_layers as usize }
    }

    /// Calls of blocks in one segment.
    #[must_use]
    pub const fn block_calls(&self) -> u64 {
        let (h, l) = (self.layers(self.modules() - 1) as u64, self.layers(0) as u64);
        self.h_cycles as u64 * (h + self.l_cycles as u64 * l)
    }

    /// Whether the mixer is an attention.
    #[must_use]
    pub const fn has_attention(&self) -> bool {
        matches!(self.mixer, Mixer::Attention | Mixer::GroupAttention)
    }

    /// Checks every field against its range and against the others.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub const fn validate(&self) -> Result<(), ConfigError> {
        macro_rules! range {
            ($field:ident, $min:expr, $max:expr) => {
                if self.$field as i64 - $min < 0 || self.$field as i64 - $max > 0 {
                    return Err(ConfigError::Range { field: stringify!($field), found: self.$field as u32, min: $min, max: $max });
                }
            };
        }
        macro_rules! conflict {
            ($bad:expr, $field:ident, $expected:expr) => {
                if $bad {
                    return Err(ConfigError::Conflict { field: stringify!($field), found: self.$field as u32, expected: $expected });
                }
            };
        }
        range!(tokens, 1, 4096);
        range!(prefix, 0, 64);
        range!(vocab, 2, 1024);
        range!(fields, 1, 64);
        // Post-norm bounds a state element by sqrt(C) <= 32, the range of Q5.10 (docs/numerics.md).
        range!(channels, 4, 1024);
        range!(inner, 4, 4096);
        range!(groupings, 0, 8);
        range!(h_layers, 1, 16);
        range!(l_layers, 1, 16);
        range!(h_cycles, 1, 16);
        range!(l_cycles, 1, 16);
        conflict!(self.shared && self.h_layers != self.l_layers, h_layers, "the same as l_layers in a shared module");
        conflict!(self.fields > 1 && self.fields != self.vocab - 2, fields, "1 or vocab - 2 (one field a symbol)");
        conflict!(self.fields > 1 && self.prefix > 0, prefix, "0 with fields");
        match self.mixer {
            Mixer::Attention | Mixer::GroupAttention => {
                range!(heads, 1, 64);
                conflict!(self.tokens + self.prefix > 1024, tokens, "at most 1024 with the prefix for attention");
                conflict!(!self.channels.is_multiple_of(self.heads), heads, "a divisor of channels");
                conflict!(self.rope && !(self.channels / self.heads).is_multiple_of(2), heads, "an even head width for rope");
                conflict!(self.fields > 1, fields, "1 with attention");
            }
            _ => {
                conflict!(self.heads != 0, heads, "0 without attention");
                conflict!(self.rope, rope, "false without attention");
            }
        }
        match self.mixer {
            Mixer::TokenMlp => {
                range!(token_inner, 4, 4096);
                conflict!(self.fields > 1, fields, "1 with token-mlp");
                conflict!(self.tokens + self.prefix > 1024, tokens, "at most 1024 with the prefix for token-mlp");
            }
            _ => conflict!(self.token_inner != 0, token_inner, "0 without token-mlp"),
        }
        match self.mixer {
            Mixer::GroupSum | Mixer::GroupAttention => {
                range!(groupings, 1, 8);
                conflict!(self.prefix > 0, prefix, "0 with groups");
            }
            _ => conflict!(self.groupings != 0, groupings, "0 without groups"),
        }
        Ok(())
    }
}
