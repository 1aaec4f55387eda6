//! The machine this runs on, measured.

use ondine_kernels::{Isa, MachineLimits, ThreadPool};

use super::{Activations, Dtype, Kind, Operation, Precision, Profile, ProfileError};

pub(super) const NAME: &str = "this-machine";

/// Measures this machine for about half a second.
///
/// # Errors
/// When nothing can be measured.
pub fn this_machine() -> Result<Profile, ProfileError> {
    let threads = ondine_runtime::backend::cpu::available_threads();
    let limits = MachineLimits::measure(&ThreadPool::new(threads));
    if !(limits.read_bytes_per_second > 0.0 && limits.int8_macs_per_second > 0.0) {
        return Err(ProfileError::Nonsense {
            file: NAME.into(),
            what: "memory and multipliers could not be measured; free some memory and try again"
                .into(),
        });
    }
    let dtype = |name: &str| {
        Dtype::parse(name).map_err(|what| ProfileError::Nonsense {
            file: NAME.into(),
            what,
        })
    };
    let precision = |dtype, weight_bits, head_bits| Precision {
        dtype,
        weight_bits,
        group: 32,
        offset: false,
        head_bits,
        embedding_bits: 8,
        activations: Activations::Int8,
        macs_per_second: Some(limits.int8_macs_per_second),
    };
    let measured = "measured now (memory reads, 8-bit multiply-accumulates)".to_owned();
    Ok(Profile {
        name: NAME.into(),
        title: format!("this machine ({}, {threads} threads)", Isa::detect().name()),
        vendor: "measured".into(),
        kind: Kind::Cpu,
        // What was measured is what software reaches; kernels keep about this share of it (docs/performance.md).
        calibration: 0.8,
        calibrated: false,
        dram_bytes_per_second: limits.read_bytes_per_second,
        sram_bytes: None,
        overlaps: true,
        launch_seconds: 2e-6,
        graph_seconds: 0.0,
        host_elements_per_second: None,
        operations: vec![
            Operation::Matmul,
            Operation::Norm,
            Operation::Rope,
            Operation::Attention,
            Operation::Gate,
            Operation::FusedGate,
        ],
        precisions: vec![
            precision(dtype("w4a8")?, 4, 8),
            precision(dtype("w8a8")?, 8, 8),
        ],
        prompt_chunk: None,
        context_limit: None,
        static_context: false,
        kv_bytes: 2,
        copies_tied_embedding: false,
        runtime_bytes: 0,
        memory_bytes: total_memory(),
        power_modes: Vec::new(),
        sources: vec![
            ("dram_gbs".into(), measured.clone()),
            ("peak_tops".into(), measured),
        ],
    })
}

/// Bytes of memory of this machine, where the system tells.
fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
