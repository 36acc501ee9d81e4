//! The float model's architecture: the core's [`Config`] with the groupings it refers to.

use hrm_core::{Config, ConfigError, Mixer};
use serde::{Deserialize, Serialize};

/// A partition of the tokens into groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grouping {
    /// Group of each token, `[S]`, ids from 0 without gaps.
    pub ids: Vec<u16>,
    /// Whether all fields of a token share one group (`true`) or each field has groups of its own.
    pub merge_fields: bool,
}

impl Grouping {
    /// Number of tokens in the largest group, times `fields` if they are merged.
    #[must_use]
    pub fn largest(&self, fields: usize) -> usize {
        let mut count = vec![0usize; self.ids.iter().map(|&i| usize::from(i) + 1).max().unwrap_or(0)];
        for &id in &self.ids {
            count[usize::from(id)] += 1;
        }
        count.into_iter().max().unwrap_or(0) * if self.merge_fields { fields } else { 1 }
    }
}

/// Architecture and groupings of one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Shapes and cycles.
    pub config: Config,
    /// `config.groupings` partitions of the tokens.
    #[serde(default)]
    pub groupings: Vec<Grouping>,
}

impl ModelSpec {
    /// Checks the shapes and that the groupings fit to them.
    ///
    /// # Errors
    /// A sentence naming the field, what was found and what was expected.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.config.validate().map_err(|e: ConfigError| anyhow::anyhow!("{e}"))?;
        anyhow::ensure!(
            self.groupings.len() == usize::from(self.config.groupings),
            "the model has {} groupings, its config says {}",
            self.groupings.len(),
            self.config.groupings
        );
        for (g, grouping) in self.groupings.iter().enumerate() {
            anyhow::ensure!(
                grouping.ids.len() == usize::from(self.config.tokens),
                "grouping {g} names {} tokens, the model has {}",
                grouping.ids.len(),
                self.config.tokens
            );
            anyhow::ensure!(
                grouping.largest(usize::from(self.config.fields)) <= 256,
                "grouping {g} has a group of more than 256 rows, which the integer network cannot sum"
            );
        }
        Ok(())
    }

    /// Number of trained parameters of a `group-sum` model.
    #[must_use]
    pub fn structured_parameters(&self) -> usize {
        let c = &self.config;
        let (ch, inner) = (usize::from(c.channels), usize::from(c.inner));
        debug_assert_eq!(c.mixer, Mixer::GroupSum);
        let block = 2 * inner * c.mix_width() + 2 * inner + ch * inner;
        let blocks: usize = (0..c.modules()).map(|m| c.layers(m)).sum();
        blocks * block + (c.input_classes() + c.head_width()) * ch + ch + 1
    }
}
