//! The instruction set that the kernels use.

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable code: the fallback and the oracle of the tests.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and VNNI.
    Avx512,
    /// AArch64 with NEON and the dot-product instructions; those of I8MM are used where they are.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// Why an instruction set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is none of the known ones.
    #[error("unknown instruction set \"{0}\": use scalar, avx2, avx512 or neon")]
    Unknown(String),
    /// This machine lacks the instruction set.
    #[error("this processor has no {0}: choose another instruction set")]
    Unavailable(String),
}

impl Isa {
    /// All that are known for this architecture, the best last.
    pub const ALL: &[Isa] = &[
        Isa::Scalar,
        Isa::Avx2,
        Isa::Avx512,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon,
    ];

    /// The best instruction set of this machine.
    pub fn detect() -> Isa {
        let mut available = Isa::ALL.iter().filter(|isa| isa.is_available());
        available.next_back().copied().unwrap_or(Isa::Scalar)
    }

    /// The instruction set called `name` (`scalar`, `avx2`, `avx512`, `neon`), if this machine has it.
    pub fn from_name(name: &str) -> Result<Isa, IsaError> {
        let isa = match name {
            "scalar" => Isa::Scalar,
            "avx2" => Isa::Avx2,
            "avx512" => Isa::Avx512,
            #[cfg(target_arch = "aarch64")]
            "neon" => Isa::Neon,
            #[cfg(not(target_arch = "aarch64"))]
            "neon" => return Err(IsaError::Unavailable(name.to_string())),
            _ => return Err(IsaError::Unknown(name.to_string())),
        };
        if isa.is_available() {
            Ok(isa)
        } else {
            Err(IsaError::Unavailable(name.to_string()))
        }
    }

    /// The name that [`from_name`](Self::from_name) takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        }
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }
}
