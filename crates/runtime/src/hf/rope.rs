//! Rotary positions: the configuration's scaling variants as metadata and frequency factors.
//!
//! The configuration says them flat (`rope_theta`, `rope_scaling`), or in `rope_parameters`, which
//! may differ between full and sliding attention.

use std::f64::consts::PI;

use serde_json::Value;

use super::config::{Config, brief, finite};
use super::family::Family;
use super::metadata::Header;
use crate::gguf::ModelFileError;

/// Tensors of frequency factors, [dimensions / 2] each, by name.
pub(super) type Factors = Vec<(&'static str, Vec<f32>)>;

/// Writes what `config` says of rotary positions on heads of `head_size`; returns the factors.
pub(super) fn write(
    header: &mut Header,
    config: &Config,
    family: &Family,
    head_size: u32,
    context: u32,
) -> Result<Factors, ModelFileError> {
    let rope = Parameters::of(config)?;
    header.string("ondine.rope.style", "halves");
    let theta = ["rope_theta", "rope_global_theta"];
    let base = rope.positive(config, &theta)?.unwrap_or(family.rope_base);
    header.own_float("rope.freq_base", base);
    if family.architecture == "gemma3" {
        let local = match &rope.sliding {
            Some(sliding) => sliding.positive(&["rope_theta"])?,
            None => config.positive(&["rope_local_base_freq"])?,
        };
        header.own_float("rope.freq_base_swa", local.unwrap_or(1e4));
        if let Some(sliding) = &rope.sliding {
            sliding.only("rope_type", &[Value::from("default")])?;
        }
    }
    let rotated = rope
        .positive(config, &["partial_rotary_factor"])?
        .unwrap_or(1.0);
    if rotated > 1.0 {
        return Err(config.refuse("`partial_rotary_factor` is above one; fetch the file again"));
    }
    let dimensions = (rotated * f64::from(head_size)) as u32;
    header.own_unsigned("rope.dimension_count", dimensions);
    let scaled = Scaled {
        rope: &rope,
        config,
        base,
        dimensions,
        context,
    };
    let kind = rope.kind()?.unwrap_or("default");
    // Beyond the trained context `dynamic` changes the base; within it, it does nothing.
    let factors = match kind {
        "default" | "none" | "dynamic" => Vec::new(),
        "linear" => scaled.linear(header)?,
        "yarn" => scaled.yarn(header)?,
        "llama3" => scaled.llama3()?,
        "su" | "longrope" => scaled.longrope(header)?,
        other => {
            return Err(config.refuse(&format!(
                "`rope_scaling` is of the type {}, which is not supported; take another model",
                brief(&Value::from(other))
            )));
        }
    };
    const WITH_FACTORS: [&str; 5] = ["llama", "granite", "granitemoe", "phi3", "smollm3"];
    if !factors.is_empty() && !WITH_FACTORS.contains(&family.architecture) {
        let what = format!("`rope_scaling` is of the type {kind:?}, which is not supported here");
        return Err(config.refuse(&what));
    }
    Ok(factors)
}

/// Where the configuration says its rotary parameters.
struct Parameters {
    /// `rope_parameters` or `rope_scaling`, for full attention.
    full: Option<Config>,
    /// The same for sliding attention, where it differs.
    sliding: Option<Config>,
}

impl Parameters {
    fn of(config: &Config) -> Result<Self, ModelFileError> {
        let Some(all) = config.object(&["rope_parameters", "rope_scaling"])? else {
            return Ok(Parameters {
                full: None,
                sliding: None,
            });
        };
        let full = all.object(&["full_attention"])?;
        let sliding = all.object(&["sliding_attention"])?;
        Ok(Parameters {
            full: Some(full.unwrap_or(all)),
            sliding,
        })
    }

    fn kind(&self) -> Result<Option<&str>, ModelFileError> {
        match &self.full {
            Some(full) => full.string(&["rope_type", "type"]),
            None => Ok(None),
        }
    }

    /// A number among the parameters, or beside them.
    fn positive(&self, config: &Config, keys: &[&str]) -> Result<Option<f64>, ModelFileError> {
        let here = match &self.full {
            Some(full) => full.positive(keys)?,
            None => None,
        };
        match here {
            Some(here) => Ok(Some(here)),
            None => config.positive(keys),
        }
    }
}

/// What the scaling variants need.
struct Scaled<'a> {
    rope: &'a Parameters,
    config: &'a Config,
    base: f64,
    dimensions: u32,
    context: u32,
}

impl Scaled<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>, ModelFileError> {
        self.rope.positive(self.config, &[key])
    }

    fn required(&self, key: &str) -> Result<f64, ModelFileError> {
        self.number(key)?.ok_or_else(|| self.config.missing(&[key]))
    }

    fn original_context(&self) -> Result<u32, ModelFileError> {
        const KEY: [&str; 1] = ["original_max_position_embeddings"];
        let here = match &self.rope.full {
            Some(full) => full.unsigned(&KEY)?,
            None => None,
        };
        let original = match here {
            Some(here) => here,
            None => self.config.unsigned(&KEY)?.unwrap_or(self.context),
        };
        match original {
            0 => Err(self
                .config
                .refuse(&format!("`{}` is zero; fetch the file again", KEY[0]))),
            original => Ok(original),
        }
    }

    fn linear(&self, header: &mut Header) -> Result<Factors, ModelFileError> {
        header.own_string("rope.scaling.type", "linear");
        header.own_float("rope.scaling.factor", self.required("factor")?);
        Ok(Vec::new())
    }

    /// YaRN (Peng et al. 2023, arXiv 2309.00071). Its own attention factor, 1 + 0.1 ln(factor), is
    /// part of the method and so divided out of a declared one.
    fn yarn(&self, header: &mut Header) -> Result<Factors, ModelFileError> {
        let factor = self.required("factor")?;
        header.own_string("rope.scaling.type", "yarn");
        header.own_float("rope.scaling.factor", factor);
        let original = self.original_context()?;
        header.own_unsigned("rope.scaling.original_context_length", original);
        let own = |scale: f64| 1.0 + 0.1 * scale * factor.max(1.0).ln();
        let declared = match self.number("attention_factor")? {
            Some(declared) => Some(declared),
            None => match (self.number("mscale")?, self.number("mscale_all_dim")?) {
                (Some(scale), Some(all)) => Some(own(scale) / own(all)),
                _ => None,
            },
        };
        if let Some(declared) = declared {
            // Below one, the method's factor is 1 + 0.1 ln(factor) all the same.
            let of_method = 1.0 + 0.1 * factor.ln();
            header.own_float("rope.scaling.attn_factor", declared / of_method);
        }
        for (key, name) in [
            ("beta_fast", "yarn_beta_fast"),
            ("beta_slow", "yarn_beta_slow"),
        ] {
            if let Some(beta) = self.number(key)? {
                header.own_float(&format!("rope.scaling.{name}"), beta);
            }
        }
        Ok(Vec::new())
    }

    /// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, and those between
    /// interpolated (Meta 2024, arXiv 2407.21783).
    fn llama3(&self) -> Result<Factors, ModelFileError> {
        let factor = self.number("factor")?.unwrap_or(8.0);
        let low = self.number("low_freq_factor")?.unwrap_or(1.0);
        let high = self.number("high_freq_factor")?.unwrap_or(4.0);
        let original = self
            .number("original_max_position_embeddings")?
            .unwrap_or(8192.0);
        if high <= low {
            return Err(self.config.refuse(
                "`high_freq_factor` is not above `low_freq_factor`; fetch the file again",
            ));
        }
        let factors = (0..self.dimensions / 2).map(|pair| {
            let exponent = f64::from(2 * pair) / f64::from(self.dimensions);
            let wavelength = 2.0 * PI * self.base.powf(exponent);
            let turns = original / wavelength;
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        });
        Ok(vec![("rope_freqs.weight", factors.collect())])
    }

    /// Long-rope (Ding et al. 2024, arXiv 2402.13753).
    fn longrope(&self, header: &mut Header) -> Result<Factors, ModelFileError> {
        header.own_string("rope.scaling.type", "longrope");
        let original = self.original_context()?;
        header.own_unsigned("rope.scaling.original_context_length", original);
        let stretch = f64::from(self.context) / f64::from(original);
        let attention = match self.number("attention_factor")? {
            Some(declared) => declared,
            None if stretch > 1.0 && original > 1 => {
                (1.0 + stretch.ln() / f64::from(original).ln()).sqrt()
            }
            None => 1.0,
        };
        header.own_float("rope.scaling.attn_factor", attention);
        let long = self.list("long_factor")?;
        let short = self.list("short_factor")?;
        Ok(vec![
            ("rope_factors_long.weight", long),
            ("rope_factors_short.weight", short),
        ])
    }

    fn list(&self, key: &str) -> Result<Vec<f32>, ModelFileError> {
        let length = self.dimensions as usize / 2;
        let list = match &self.rope.full {
            Some(full) => full.list(key, length)?,
            None => None,
        };
        let list = list.ok_or_else(|| self.config.missing(&[key]))?;
        let factors = list
            .iter()
            .map(|factor| finite(factor).filter(|&factor| factor > 0.0))
            .map(|factor| factor.map(|factor| factor as f32))
            .collect::<Option<Vec<f32>>>();
        factors.ok_or_else(|| {
            self.config.refuse(&format!(
                "`{key}` has an element that is not a positive number; fetch the file again"
            ))
        })
    }
}
