//! What makes decoding quicker and must not change the text: the screened head and guessed tokens.

use std::path::Path;
use std::sync::Arc;

use ondine_fixtures::{ARCHITECTURES, Random, Tiny};
use ondine_kernels::TensorType;
use ondine_runtime::backend::cpu::CpuBackend;
use ondine_runtime::backend::{
    BackendError, Decoder, KvType, LoadOptions, Run, Scores, Select, Wanted,
};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::sample::SamplingOptions;
use ondine_runtime::source::Memory;
use ondine_runtime::speculate::{DraftModel, Drafter};
use ondine_runtime::{GenerateOptions, GenerationStats, Limits, Model, Session, Speculation};

#[test]
fn a_few_tokens_at_once_have_the_scores_of_one_by_one() {
    for architecture in ARCHITECTURES {
        for kv_type in [KvType::F16, KvType::Q8_0] {
            let model = model(architecture, TensorType::Q8_0, 3);
            let text = tokens(4, 60);
            let mut decoder = decoder(&model, kv_type);
            let single = decoder.start();
            let mut expected = Vec::new();
            for token in text.chunks(1) {
                let run = Run {
                    sequence: single,
                    tokens: token,
                    wanted: Wanted::Last,
                    select: Select::All,
                };
                expected.extend(logits(decoder.as_mut(), run));
            }
            let several = decoder.start();
            let mut got = Vec::new();
            let mut rest = text.as_slice();
            for count in [1, 2, 4, 8, 16, 5, 15, 9] {
                let (part, later) = rest.split_at(count);
                rest = later;
                let run = Run {
                    sequence: several,
                    tokens: part,
                    wanted: Wanted::From(0),
                    select: Select::All,
                };
                got.extend(logits(decoder.as_mut(), run));
            }
            for (position, got) in got.iter().enumerate() {
                assert!(
                    same_bits(got, &expected[position]),
                    "{architecture} {position}"
                );
            }
        }
    }
}

#[test]
fn the_best_scores_are_those_of_all() {
    let model = model("llama", TensorType::Q8_0, 5);
    let text = tokens(6, 200);
    let mut decoder = decoder(&model, KvType::F16);
    let run = |sequence, select| Run {
        sequence,
        tokens: &text,
        wanted: Wanted::From(0),
        select,
    };
    let sequence = decoder.start();
    let all = logits(decoder.as_mut(), run(sequence, Select::All));
    let before = decoder.head();
    assert_eq!((before.rows, before.screened), (200, 0));
    for (count, also) in [(1, &[][..]), (2, &[7, 9, 100_000])] {
        let sequence = decoder.start();
        let (mut position, mut found_best) = (0, 0);
        decoder
            .forward(
                &[run(sequence, Select::Best { count, also })],
                &mut |scored| {
                    let all = &all[position];
                    position += 1;
                    let Scores::Candidates(best) = scored.scores else {
                        return;
                    };
                    found_best += 1;
                    let mut expected: Vec<(u32, f32)> = (0..).zip(all.iter().copied()).collect();
                    expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                    assert_eq!(best[..count], expected[..count]);
                    for &(token, logit) in best {
                        assert_eq!(logit.to_bits(), all[token as usize].to_bits());
                    }
                    let known = also.iter().filter(|&&token| (token as usize) < all.len());
                    for token in known {
                        assert!(best.iter().any(|(found, _)| found == token));
                    }
                },
            )
            .expect("it computes");
        assert_eq!(position, 200);
        let report = decoder.head().since(&before);
        assert!(report.screened > 0 && report.screened >= report.undecided);
        assert!(found_best > 0, "the screen decides nothing");
    }
    let report = decoder.head().since(&before);
    assert_eq!(report.rows, 400);
    assert!(report.bytes_read > 0 && (0.0..=1.0).contains(&report.fallback_rate()));
}

#[test]
fn guesses_do_not_change_the_text() {
    let sampled = SamplingOptions {
        temperature: 0.7,
        top_k: 5,
        seed: 11,
        ..SamplingOptions::default()
    };
    let penalised = SamplingOptions {
        repeat_penalty: 1.3,
        frequency_penalty: 0.2,
        logit_bias: vec![(5, 1.5), (6, f32::NEG_INFINITY)],
        ..sampled.clone()
    };
    let plain = SamplingOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        ..sampled.clone()
    };
    for architecture in ["llama", "gemma3", "lfm2", "gpt2"] {
        if !ARCHITECTURES.contains(&architecture) {
            continue;
        }
        let model = model(architecture, TensorType::Q8_0, 8);
        let samplings = [
            SamplingOptions::greedy(),
            sampled.clone(),
            penalised.clone(),
            plain.clone(),
        ];
        for sampling in samplings {
            let run = |speculation| generate(&model, &sampling, speculation, 80);
            let (expected, stats) = run(Speculation::Off);
            assert_eq!(stats.speculation.rounds, 0);
            let (text, _) = run(Speculation::Lookup);
            assert_eq!(text, expected, "{architecture} lookup");
            let known = Known {
                text: expected.clone(),
                wrong: 0.3,
                random: Random::new(1),
            };
            let (text, stats) = run(Speculation::Drafter(Box::new(known)));
            assert_eq!(text, expected, "{architecture} known text");
            assert!(stats.speculation.rounds > 0 && stats.speculation.accepted > 0);
            let draft = DraftModel::new(Session::new(model.clone(), decoder(&model, KvType::F16)));
            let (text, stats) = run(Speculation::Drafter(Box::new(draft)));
            assert_eq!(text, expected, "{architecture} draft model");
            assert_eq!(stats.speculation.source, Some("model"));
        }
    }
}

#[test]
fn a_session_holds_no_guesses_afterwards() {
    let model = model("llama", TensorType::Q8_0, 8);
    let mut session = Session::new(model.clone(), decoder(&model, KvType::F16));
    let prompt = tokens(2, 20);
    let known = Known {
        text: vec![1; 100],
        wrong: 0.0,
        random: Random::new(1),
    };
    let options = GenerateOptions {
        sampling: SamplingOptions::greedy(),
        speculation: Speculation::Drafter(Box::new(known)),
        ignore_end: true,
        ..GenerateOptions::default()
    };
    let mut generation = session.generate(&prompt, options).expect("it begins");
    let pieces = generation.by_ref().take(12);
    let text: Vec<u32> = pieces
        .map(|piece| piece.expect("computed").token.expect("a token").token)
        .collect();
    assert!(generation.stats().speculation.rounds > 0);
    drop(generation);
    let held = session.tokens();
    let all: Vec<u32> = prompt.iter().chain(&text).copied().collect();
    assert!(held.len() >= prompt.len() && all.starts_with(held));
}

/// Tokens follow the same distribution with guesses as without: counts of two samples with different seeds, compared by
/// chi-square (probability 0.0001 of a false alarm, but the seeds are fixed).
#[test]
fn the_distribution_is_the_model_s() {
    const DRAWS: u64 = 1500;
    let model = model("llama", TensorType::Q8_0, 21);
    let prompt = tokens(2, 12);
    let mut session = Session::new(model.clone(), decoder(&model, KvType::F16));
    let mut sample = |first_seed: u64, guesses: bool| {
        let mut counts = std::collections::BTreeMap::<u32, f64>::new();
        let mut rounds = 0;
        for seed in first_seed..first_seed + DRAWS {
            let random = Random::new(seed);
            let options = GenerateOptions {
                sampling: SamplingOptions {
                    temperature: 0.6,
                    top_k: 3,
                    top_p: 1.0,
                    min_p: 0.0,
                    seed,
                    ..SamplingOptions::default()
                },
                max_tokens: Some(6),
                ignore_end: true,
                speculation: match guesses {
                    true => Speculation::Drafter(Box::new(Likely { random })),
                    false => Speculation::Off,
                },
                ..GenerateOptions::default()
            };
            let mut generation = session.generate(&prompt, options).expect("it begins");
            let last = generation
                .by_ref()
                .flatten()
                .filter_map(|piece| piece.token)
                .last();
            rounds += generation.stats().speculation.rounds;
            *counts.entry(last.expect("a token").token).or_default() += 1.0;
        }
        assert_eq!(rounds > 0, guesses);
        counts
    };
    let (with, without) = (sample(1, true), sample(1_000_000, false));
    let tokens: std::collections::BTreeSet<u32> =
        with.keys().chain(without.keys()).copied().collect();
    let count =
        |of: &std::collections::BTreeMap<u32, f64>, token| of.get(token).copied().unwrap_or(0.0);
    let (mut chi_square, mut cells) = (0.0, 0.0);
    let mut rare = [0.0; 2];
    let mut cell = |a: f64, b: f64| {
        chi_square += (a - b).powi(2) / (a + b);
        cells += 1.0;
    };
    for token in &tokens {
        let (a, b) = (count(&with, token), count(&without, token));
        if a + b < 20.0 {
            rare = [rare[0] + a, rare[1] + b];
        } else {
            cell(a, b);
        }
    }
    if rare[0] + rare[1] > 0.0 {
        cell(rare[0], rare[1]);
    }
    let freedom: f64 = cells - 1.0;
    assert!(freedom >= 3.0, "too few different tokens to compare");
    let spread = 2.0 / (9.0 * freedom);
    let bound = freedom * (1.0 - spread + 3.719 * spread.sqrt()).powi(3);
    assert!(chi_square <= bound, "{chi_square} > {bound}");
}

#[test]
fn a_draft_model_of_another_vocabulary_is_refused() {
    let model = model("llama", TensorType::F32, 1);
    let session = |model: &Arc<Model>| Session::new(model.clone(), decoder(model, KvType::F16));
    let draft = DraftModel::new(session(&model));
    assert_eq!(draft.mismatch(&session(&model)), None);
    let mut others = ARCHITECTURES
        .iter()
        .map(|architecture| self::model(architecture, TensorType::F32, 1));
    let vocabulary = session(&model).decoder().spec().vocabulary;
    let other = others.find(|other| session(other).decoder().spec().vocabulary != vocabulary);
    if let Some(other) = other {
        let why = draft.mismatch(&session(&other)).expect("a reason");
        assert!(why.contains("same family") && !why.contains('\n'));
    }
}

/// Guesses a known text after the prompt, sometimes wrongly.
struct Known {
    text: Vec<u32>,
    wrong: f64,
    random: Random,
}

impl Drafter for Known {
    fn name(&self) -> &'static str {
        "known"
    }

    fn draft(
        &mut self,
        tokens: &[u32],
        count: usize,
        guesses: &mut Vec<u32>,
    ) -> Result<(), BackendError> {
        let done = tokens.len() - PROMPT.min(tokens.len());
        for &token in self.text.iter().skip(done).take(count) {
            let is_wrong = (self.random.below(1000) as f64) < self.wrong * 1000.0;
            guesses.push(if is_wrong { 3 } else { token });
        }
        Ok(())
    }
}

/// Repeats one of the last tokens: sometimes right, never always.
struct Likely {
    random: Random,
}

impl Drafter for Likely {
    fn name(&self) -> &'static str {
        "likely"
    }

    fn draft(
        &mut self,
        tokens: &[u32],
        count: usize,
        guesses: &mut Vec<u32>,
    ) -> Result<(), BackendError> {
        let recent = &tokens[tokens.len().saturating_sub(3)..];
        guesses.extend((0..count).map(|_| recent[self.random.below(recent.len())]));
        Ok(())
    }
}

/// Tokens of the prompt of [`generate`].
const PROMPT: usize = 20;

fn generate(
    model: &Arc<Model>,
    sampling: &SamplingOptions,
    speculation: Speculation,
    length: usize,
) -> (Vec<u32>, GenerationStats) {
    let mut session = Session::new(model.clone(), decoder(model, KvType::F16));
    let options = GenerateOptions {
        max_tokens: Some(length),
        sampling: sampling.clone(),
        speculation,
        ignore_end: true,
        ..GenerateOptions::default()
    };
    let mut generation = session
        .generate(&tokens(2, PROMPT), options)
        .expect("it begins");
    let text = generation.by_ref();
    let text = text.filter_map(|piece| piece.expect("computed").token.map(|sampled| sampled.token));
    let text = text.collect();
    (text, *generation.stats())
}

fn logits(decoder: &mut dyn Decoder, run: Run<'_>) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    decoder
        .forward(&[run], &mut |scored| match scored.scores {
            Scores::All(logits) => all.push(logits.to_vec()),
            _ => panic!("all were asked for"),
        })
        .expect("it computes");
    all
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn model(architecture: &'static str, tensor_type: TensorType, seed: u64) -> Arc<Model> {
    let tiny = Tiny {
        tensor_type,
        ..Tiny::new(architecture, seed)
    };
    let limits = Limits::default();
    let source = Memory::new(architecture, tiny.gguf());
    let file = ModelFile::from_source(Arc::new(source), &limits).expect("a whole file");
    Arc::new(Model::from_file(Path::new(architecture), file, &limits).expect("a whole model"))
}

fn decoder(model: &Model, kv_type: KvType) -> Box<dyn Decoder> {
    let backend = CpuBackend::from_environment().expect("a processor");
    let options = LoadOptions {
        kv_type,
        screened_head: true,
        ..LoadOptions::default()
    };
    model.load(&backend, &options).expect("it fits")
}

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(256) as u32).collect()
}
