//! Weights from the packed cache, whole and streamed, give the same bits as weights packed in memory.

use std::fs;
use std::path::{Path, PathBuf};

use ondine_fixtures::{ARCHITECTURES, Tiny};
use ondine_kernels::TensorType;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{
    Decoder, LoadOptions, MemoryBudget, Run, Scores, Select, StreamingReport, Wanted,
};
use ondine_runtime::{Limits, Model, PackedCache};

/// Tokens of a prompt, and of what follows one by one.
const PROMPT: usize = 9;
const FOLLOWING: usize = 4;

#[test]
fn cached_and_streamed_weights_give_the_same_bits() {
    for (index, architecture) in ARCHITECTURES.into_iter().enumerate() {
        let types = [TensorType::Q4_0, TensorType::Q8_0, TensorType::F32];
        let place = Place::new(&Tiny {
            tensor_type: types[index % types.len()],
            untied: index % 2 == 1 || architecture == "olmoe",
            ..Tiny::new(architecture, 7)
        });
        let (expected, packed) = place.logits(&LoadOptions::default());
        assert!(packed.is_none());
        // The first time it is written, the second time only read.
        for _ in 0..2 {
            let (cached, report) = place.logits(&place.options(None));
            assert!(cached == expected, "{architecture}: cached");
            assert!(report.is_none());
        }
        assert_eq!(place.cache().files().unwrap().len(), 1);
        // A split head has a file of its own.
        for _ in 0..2 {
            let split = LoadOptions {
                screened_head: true,
                ..place.options(None)
            };
            let (cached, _) = place.logits(&split);
            assert!(cached == expected, "{architecture}: split head");
        }
        let mut streamed = 0;
        for budget in place.budgets() {
            let (logits, report) = place.logits(&place.options(Some(budget)));
            assert!(logits == expected, "{architecture}: within {budget} bytes");
            let report = report.expect("it streams");
            assert!(
                report.resident_bytes + report.buffer_bytes <= budget,
                "{architecture}: {report:?} within {budget}"
            );
            assert_eq!(report.passes, 2 + FOLLOWING as u64);
            streamed += u64::from(report.bytes > 0);
        }
        assert!(streamed >= 3, "{architecture}: {streamed}");
    }
}

#[test]
fn hot_experts_are_kept() {
    let place = Place::new(&Tiny {
        experts: 8,
        feed_forward: 256,
        ..Tiny::new("qwen3moe", 3)
    });
    let [least, .., most] = place.budgets();
    let (_, tight) = place.logits(&place.options(Some(least)));
    let (_, roomy) = place.logits(&place.options(Some(most)));
    let (tight, roomy) = (tight.expect("it streams"), roomy.expect("it streams"));
    assert!(tight.experts_used > 0 && tight.experts_used == roomy.experts_used);
    assert!(
        roomy.experts_kept > tight.experts_kept,
        "{roomy:?} {tight:?}"
    );
    assert!(roomy.bytes < tight.bytes, "{roomy:?} {tight:?}");
}

#[test]
fn too_small_a_budget_is_refused_and_says_what_is_needed() {
    let place = Place::new(&Tiny::new("llama", 1));
    let error = place.refusal(&place.options(Some(10_000)));
    assert!(
        error.contains("at least") && error.contains("MiB"),
        "{error}"
    );
    let without = LoadOptions {
        packed_cache: None,
        ..place.options(Some(1 << 20))
    };
    let error = place.refusal(&without);
    assert!(error.contains("cache"), "{error}");
    let file = place.model.with_extension("not-a-directory");
    fs::write(&file, "").unwrap();
    let unwritable = LoadOptions {
        packed_cache: Some(PackedCache::new(file.join("packed"), 1 << 30)),
        ..place.options(Some(1 << 20))
    };
    let error = place.refusal(&unwritable);
    assert!(error.contains("cannot be written"), "{error}");
}

#[test]
fn damage_is_told_and_mended_and_a_bad_place_is_no_obstacle() {
    let place = Place::new(&Tiny::new("llama", 2));
    let (expected, _) = place.logits(&place.options(None));
    let file = place.cache().files().unwrap().remove(0).path;
    let mut bytes = fs::read(&file).unwrap();
    bytes[70] ^= 4;
    fs::write(&file, &bytes).unwrap();
    let decoder = place.load(&place.options(None));
    assert_eq!(decoder.notes().len(), 1, "{:?}", decoder.notes());
    drop(decoder);
    bytes.truncate(bytes.len() / 2);
    fs::write(&file, &bytes).unwrap();
    let (mended, _) = place.logits(&place.options(None));
    assert!(mended == expected);
    assert!(place.load(&place.options(None)).notes().is_empty());

    let blocked = place.model.with_extension("not-a-directory");
    fs::write(&blocked, "").unwrap();
    let options = LoadOptions {
        packed_cache: Some(PackedCache::new(blocked.join("packed"), 1 << 30).with_least(0)),
        ..LoadOptions::default()
    };
    let (without, _) = place.logits(&options);
    assert!(without == expected);
}

#[test]
fn another_model_under_the_same_name_is_noticed() {
    let place = Place::new(&Tiny::new("llama", 4));
    let (first, _) = place.logits(&place.options(None));
    fs::write(&place.model, Tiny::new("llama", 5).gguf()).unwrap();
    let (second, _) = place.logits(&place.options(None));
    let (expected, _) = place.logits(&LoadOptions::default());
    assert!(second == expected && second != first);
    assert_eq!(place.cache().files().unwrap().len(), 1);
}

/// A model file with a cache beside it.
struct Place {
    directory: tempfile::TempDir,
    model: PathBuf,
}

impl Place {
    fn new(tiny: &Tiny) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("model.gguf");
        fs::write(&model, tiny.gguf()).unwrap();
        Place { directory, model }
    }

    fn cache(&self) -> PackedCache {
        PackedCache::new(self.directory.path().join("packed"), 1 << 30).with_least(0)
    }

    fn options(&self, budget: Option<u64>) -> LoadOptions {
        LoadOptions {
            packed_cache: Some(self.cache()),
            memory_budget: budget.map(MemoryBudget::Weights),
            threads: Some(2),
            ..LoadOptions::default()
        }
    }

    /// Budgets from the smallest that works to half of what is missing to all weights.
    fn budgets(&self) -> [u64; 4] {
        let bytes = fs::metadata(&self.model).unwrap().len() * 2;
        let works = |budget: &u64| {
            self.open()
                .load(
                    &CpuBackend::from_environment().unwrap(),
                    &self.options(Some(*budget)),
                )
                .is_ok()
        };
        let (mut low, mut high) = (0, bytes);
        while high - low > 4096 {
            let middle = low.midpoint(high);
            match works(&middle) {
                true => high = middle,
                false => low = middle,
            }
        }
        let all = self.load(&self.options(Some(bytes))).streaming().unwrap();
        assert_eq!(all.buffer_bytes, 0);
        let missing = all.resident_bytes.saturating_sub(high);
        [
            high,
            high + missing / 6,
            high + missing / 3,
            high + missing / 2,
        ]
    }

    fn open(&self) -> Model {
        Model::open(Path::new(&self.model), &Limits::default()).unwrap()
    }

    fn load(&self, options: &LoadOptions) -> Box<dyn Decoder> {
        let backend = CpuBackend::from_environment().unwrap();
        self.open().load(&backend, options).unwrap()
    }

    fn refusal(&self, options: &LoadOptions) -> String {
        let backend = CpuBackend::from_environment().unwrap();
        let loaded = self.open().load(&backend, options);
        loaded.err().expect("it is refused").to_string()
    }

    /// All logits of a prompt in two parts, the first without scores, and of tokens one by one.
    fn logits(&self, options: &LoadOptions) -> (Vec<f32>, Option<StreamingReport>) {
        let mut decoder = self.load(options);
        let sequence = decoder.start();
        let vocabulary = decoder.spec().vocabulary;
        let tokens: Vec<u32> = (0..(PROMPT + FOLLOWING) as u32)
            .map(|index| (index * 37 + 5) % vocabulary as u32)
            .collect();
        let (prompt, following) = tokens.split_at(PROMPT);
        let (begin, rest) = prompt.split_at(PROMPT / 2);
        let mut steps = vec![(begin, Wanted::Nothing), (rest, Wanted::From(0))];
        steps.extend(following.chunks(1).map(|token| (token, Wanted::Last)));
        let mut all = Vec::new();
        for (tokens, wanted) in steps {
            let run = Run {
                sequence,
                tokens,
                wanted,
                select: Select::All,
            };
            decoder
                .forward(&[run], &mut |scored| {
                    if let Scores::All(logits) = scored.scores {
                        all.extend_from_slice(logits);
                    }
                })
                .unwrap();
        }
        assert!(all.iter().all(|logit| logit.is_finite()));
        (all, decoder.streaming())
    }
}
