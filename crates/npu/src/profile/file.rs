//! The TOML form of a profile.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::{Activations, Dtype, Kind, Operation, PowerMode, Precision, Profile, ProfileError};

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../profiles/", $name, ".toml")))),*]
    };
}

/// The profiles that ship, as (name, text).
pub(super) const BUILT_IN: &[(&str, &str)] = built_in![
    "intel-npu-3720",
    "intel-npu-4000",
    "intel-npu-5010",
    "snapdragon-x-elite",
    "snapdragon-x2-elite",
    "snapdragon-8-gen-3",
    "snapdragon-8-elite",
    "xdna1",
    "xdna2",
    "apple-m4",
    "apple-a17-pro",
    "rk3588",
    "rk3576",
    "ethos-u65",
    "ethos-u85",
    "raspberry-pi-5",
    "zen4-laptop",
];

const CALIBRATION: &str = include_str!("../../profiles/calibration.toml");

/// No profile is longer than this.
const MOST_BYTES: u64 = 1 << 20;

/// No published number of a device is beyond this; it keeps arithmetic away from infinities.
const MOST: f64 = 1e9;

/// Reads the profile in the file at `path`.
pub(super) fn read(path: &Path) -> Result<Profile, ProfileError> {
    let name = path.display().to_string();
    let refuse = |what: String| ProfileError::Nonsense {
        file: name.clone(),
        what,
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(refuse("is longer than a profile can be".into()));
    }
    parse(&name, &text)
}

/// Checks the profile in `text`; `name` is for errors.
pub(super) fn parse(name: &str, text: &str) -> Result<Profile, ProfileError> {
    let refuse = |what: String| ProfileError::Nonsense {
        file: name.to_owned(),
        what,
    };
    let raw: Raw = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            text[..span.start.min(text.len())].lines().count().max(1)
        });
        refuse(format!(
            "line {line}: {}; correct it, docs/planning.md lists the keys",
            error.message().replace('\n', " ")
        ))
    })?;
    let mut numbers = Numbers {
        sources: Vec::new(),
        wrong: None,
    };
    let (calibration, calibrated) = calibration(&raw.vendor, &mut numbers);
    let peak = |compute: &str| match compute {
        "int8" => raw.peak_tops.int8.as_ref(),
        "int16" => raw.peak_tops.int16.as_ref(),
        "f16" => raw.peak_tops.f16.as_ref(),
        "bf16" => raw.peak_tops.bf16.as_ref(),
        _ => None,
    };
    let mut precisions = Vec::new();
    for precision in &raw.precision {
        let dtype = Dtype::parse(&precision.dtype).map_err(&refuse)?;
        for bits in [
            precision.weight_bits,
            precision.head_bits,
            precision.embedding_bits,
        ] {
            if ![4, 8, 16].contains(&bits) {
                return Err(refuse(format!(
                    "`{dtype}` has {bits} bits where 4, 8 or 16 are possible"
                )));
            }
        }
        if precision.group > 1 << 16 {
            return Err(refuse(format!(
                "`{dtype}` has a group of {}",
                precision.group
            )));
        }
        if !["int8", "int16", "f16", "bf16"].contains(&precision.compute.as_str()) {
            return Err(refuse(format!(
                "`{dtype}` computes in `{}`; possible are int8, int16, f16, bf16",
                precision.compute
            )));
        }
        // Two operations (multiply, add) are one multiply-accumulate.
        let tops = numbers.optional("peak_tops", peak(&precision.compute));
        precisions.push(Precision {
            dtype,
            weight_bits: precision.weight_bits,
            group: precision.group,
            offset: precision.offset,
            head_bits: precision.head_bits,
            embedding_bits: precision.embedding_bits,
            activations: precision.activations,
            macs_per_second: tops.map(|tops| tops * 1e12 / 2.0),
        });
    }
    if precisions.is_empty() {
        return Err(refuse("has no [[precision]]; add one".into()));
    }
    let power_modes = raw
        .power
        .iter()
        .map(|power| PowerMode {
            name: power.mode.clone(),
            watts: numbers.number("watts", power.watts, &power.source),
            speed: power
                .speed
                .map_or(1.0, |speed| numbers.number("speed", speed, &power.source)),
        })
        .collect();
    let whole = |value: f64| value as u64;
    let profile = Profile {
        name: raw.name,
        title: raw.title,
        vendor: raw.vendor,
        kind: raw.kind,
        calibration,
        calibrated,
        dram_bytes_per_second: numbers.required("dram_gbs", &raw.dram_gbs) * 1e9,
        sram_bytes: numbers
            .optional("sram_kib", raw.sram_kib.as_ref())
            .map(|kib| whole(kib * 1024.0)),
        overlaps: raw.dma_overlaps,
        launch_seconds: numbers.or_zero("launch_us", raw.launch_us.as_ref()) * 1e-6,
        graph_seconds: numbers.or_zero("graph_us", raw.graph_us.as_ref()) * 1e-6,
        host_elements_per_second: numbers
            .optional("host_gelements", raw.host_gelements.as_ref())
            .map(|rate| rate * 1e9),
        operations: raw.operations,
        precisions,
        prompt_chunk: numbers
            .optional("prompt_chunk", raw.prompt_chunk.as_ref())
            .map(|tokens| whole(tokens) as usize),
        context_limit: numbers
            .optional("context_limit", raw.context_limit.as_ref())
            .map(|tokens| whole(tokens) as usize),
        static_context: raw.static_context,
        kv_bytes: usize::from(raw.kv_bytes.unwrap_or(2)),
        copies_tied_embedding: raw.copies_tied_embedding,
        runtime_bytes: whole(
            numbers.or_zero("runtime_mib", raw.runtime_mib.as_ref()) * f64::from(1 << 20),
        ),
        memory_bytes: numbers
            .optional("memory_gib", raw.memory_gib.as_ref())
            .map(|gib| whole(gib * f64::from(1 << 30))),
        power_modes,
        sources: numbers.sources,
    };
    if let Some(wrong) = numbers.wrong {
        return Err(refuse(wrong));
    }
    if !profile.operations.contains(&Operation::Matmul) {
        return Err(refuse("has no `matmul` among its operations".into()));
    }
    if profile.kv_bytes == 0 || profile.kv_bytes > 4 {
        return Err(refuse(format!(
            "`kv_bytes` is {}; possible are 1 to 4",
            profile.kv_bytes
        )));
    }
    if profile.prompt_chunk == Some(0) || profile.sram_bytes.is_some_and(|bytes| bytes < 4096) {
        return Err(refuse(
            "`prompt_chunk` or `sram_kib` is too small for any model".into(),
        ));
    }
    Ok(profile)
}

/// The vendor's constant, and whether it was fitted.
fn calibration(vendor: &str, numbers: &mut Numbers) -> (f64, bool) {
    let table: Calibration =
        toml::from_str(CALIBRATION).unwrap_or(Calibration { vendor: Vec::new() });
    let entry = |name: &str| table.vendor.iter().find(|entry| entry.name == name);
    match entry(vendor).or_else(|| entry("others")) {
        Some(entry) => {
            let share = numbers.number("calibration", entry.share, &entry.source);
            (share, entry.fitted)
        }
        None => (1.0, false),
    }
}

/// Collects sources and the first number that makes no sense.
struct Numbers {
    sources: Vec<(String, String)>,
    wrong: Option<String>,
}

impl Numbers {
    fn number(&mut self, key: &str, value: f64, source: &str) -> f64 {
        if !(value.is_finite() && value > 0.0 && value <= MOST) {
            self.wrong.get_or_insert(format!(
                "`{key}` is {value}, which no device has; correct it or leave it out"
            ));
        }
        if source.trim().is_empty() {
            self.wrong
                .get_or_insert(format!("`{key}` has no source; say where it comes from"));
        }
        if !self.sources.iter().any(|(known, _)| known == key) {
            self.sources.push((key.to_owned(), source.to_owned()));
        }
        value
    }

    fn required(&mut self, key: &str, sourced: &Sourced) -> f64 {
        self.number(key, sourced.value, &sourced.source)
    }

    fn optional(&mut self, key: &str, sourced: Option<&Sourced>) -> Option<f64> {
        sourced.map(|sourced| self.required(key, sourced))
    }

    fn or_zero(&mut self, key: &str, sourced: Option<&Sourced>) -> f64 {
        self.optional(key, sourced).unwrap_or(0.0)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    title: String,
    vendor: String,
    kind: Kind,
    dram_gbs: Sourced,
    sram_kib: Option<Sourced>,
    #[serde(default)]
    peak_tops: Peaks,
    dma_overlaps: bool,
    launch_us: Option<Sourced>,
    graph_us: Option<Sourced>,
    host_gelements: Option<Sourced>,
    operations: Vec<Operation>,
    prompt_chunk: Option<Sourced>,
    context_limit: Option<Sourced>,
    #[serde(default)]
    static_context: bool,
    kv_bytes: Option<u8>,
    #[serde(default)]
    copies_tied_embedding: bool,
    runtime_mib: Option<Sourced>,
    memory_gib: Option<Sourced>,
    #[serde(default)]
    precision: Vec<RawPrecision>,
    #[serde(default)]
    power: Vec<RawPower>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Peaks {
    int8: Option<Sourced>,
    int16: Option<Sourced>,
    f16: Option<Sourced>,
    bf16: Option<Sourced>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sourced {
    value: f64,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPrecision {
    dtype: String,
    weight_bits: u32,
    #[serde(default)]
    group: usize,
    #[serde(default)]
    offset: bool,
    head_bits: u32,
    embedding_bits: u32,
    activations: Activations,
    compute: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPower {
    mode: String,
    watts: f64,
    speed: Option<f64>,
    source: String,
}

#[derive(Deserialize)]
struct Calibration {
    vendor: Vec<Constant>,
}

#[derive(Deserialize)]
struct Constant {
    name: String,
    share: f64,
    fitted: bool,
    source: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_that_ships_can_be_read() {
        for (name, text) in BUILT_IN {
            let profile = parse(name, text).unwrap();
            assert_eq!(profile.name, *name);
            assert!(profile.sources.iter().all(|(_, source)| source.len() > 3));
        }
    }

    #[test]
    fn nonsense_is_one_sentence() {
        let good = BUILT_IN
            .iter()
            .find(|(name, _)| *name == "rk3588")
            .unwrap()
            .1;
        let cases = [
            (
                "dram_gbs = { value = 34",
                "dram_gbs = { value = -34",
                "`dram_gbs` is -34",
            ),
            (
                "dram_gbs = { value = 34",
                "dram_gbs = { value = nan",
                "`dram_gbs` is NaN",
            ),
            (
                "dram_gbs = { value = 34",
                "dram_gbs = { value = 1e300",
                "which no device has",
            ),
            (
                "dram_gbs = { value = 34",
                "dram_gbs = { value = 0 * 34",
                "line",
            ),
            (
                "dram_gbs = { value = 34",
                "dram_gbs = { value = 0.0, source = \"x\" } #",
                "`dram_gbs` is 0",
            ),
            ("dma_overlaps = true", "dma_overlaps = 3", "line"),
            ("dma_overlaps = true", "dma_overlaps = true\nfoo = 1", "foo"),
            ("weight_bits = 8", "weight_bits = 7", "has 7 bits"),
            ("\"matmul\"", "\"norm\"", "no `matmul`"),
            ("dtype = \"w8a8\"", "dtype = \"8bit\"", "no precision"),
        ];
        for (from, to, expected) in cases {
            assert!(good.contains(from), "{from}");
            let error = parse("x.toml", &good.replacen(from, to, 1))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
