use super::layout::tests::gguf;
use super::*;
use crate::Limits;
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(old: &[u8], new: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("old"), old).unwrap();
        fs::write(directory.path().join("new"), new).unwrap();
        Files { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn diff(&self) -> Made {
        diff(
            &self.path("old"),
            &self.path("new"),
            &self.path("delta"),
            &Limits::default(),
        )
        .unwrap()
    }

    fn apply(&self) -> Result<Applied, DeltaError> {
        apply(
            &self.path("old"),
            &self.path("delta"),
            &self.path("out"),
            &Limits::default(),
        )
    }

    fn round_trip(&self) -> u64 {
        let made = self.diff();
        self.apply().unwrap();
        assert!(fs::read(self.path("out")).unwrap() == fs::read(self.path("new")).unwrap());
        assert!(!self.path("out.part").exists() && !self.path("out.part.journal").exists());
        made.size
    }
}

/// Bytes that look like a quantised tensor to no one, which the coder must survive.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) | 1;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}

fn changed(bytes: &[u8], every: usize) -> Vec<u8> {
    bytes
        .iter()
        .enumerate()
        .map(|(i, byte)| {
            if i % every == 0 {
                byte.wrapping_add(1)
            } else {
                *byte
            }
        })
        .collect()
}

#[test]
fn every_type_survives_small_and_large_changes() {
    for kind in [
        0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 24, 30, 39,
    ] {
        let (weights, bytes) = layout::block_shape(kind).unwrap();
        let row = weights * 3;
        let old = noise(kind.into(), (bytes * 3 * 40) as usize);
        for new in [changed(&old, 1000), changed(&old, 7), noise(99, old.len())] {
            let file = |data: &[u8]| {
                gguf(
                    "t",
                    &[("w", kind, &[row, 40], data), ("v", 0, &[2], &[0; 8])],
                )
            };
            Files::new(&file(&old), &file(&new)).round_trip();
        }
    }
}

#[test]
fn a_changed_template_is_tiny() {
    let data = noise(1, 20 * 3000);
    let old_text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %} You are a helpful assistant.";
    let new_text = old_text.replace("helpful", "careful and brief")
        + "{% if tools %}{{ tools | tojson }}{% endif %}";
    let file = |text: &str| gguf(text, &[("w", 3, &[64, 1500], &data)]);
    let size = Files::new(&file(old_text), &file(&new_text)).round_trip();
    assert!(size < 160, "{size}");
}

#[test]
fn tensors_that_move_or_change_names_cost_almost_nothing() {
    let (a, b) = (noise(1, 20 * 3000), noise(2, 34 * 3000));
    let old = gguf("t", &[("a", 3, &[32, 3000], &a), ("b", 8, &[32, 3000], &b)]);
    let new = gguf("t", &[("c", 8, &[32, 3000], &b), ("a", 3, &[32, 3000], &a)]);
    let size = Files::new(&old, &new).round_trip();
    assert!(size < 120, "{size}");
    let renamed = gguf(
        "t",
        &[
            ("a", 3, &[32, 3000], &a),
            ("c", 8, &[32, 3000], &changed(&b, 500)),
        ],
    );
    let size = Files::new(&old, &renamed).round_trip();
    assert!(size < 4000, "{size}");
}

#[test]
fn other_files_survive() {
    let text = noise(3, 100_000);
    let mut edited = text.clone();
    edited.splice(5000..5010, *b"something else entirely");
    edited.splice(70_000..70_000, text[100..900].to_vec());
    edited.drain(20_000..30_000);
    let size = Files::new(&text, &edited).round_trip();
    assert!(size < 150, "{size}");
    for (old, new) in [
        (vec![], vec![]),
        (vec![], text.clone()),
        (text.clone(), vec![]),
        (text.clone(), text.clone()),
        (text, vec![7; 300_000]),
    ] {
        Files::new(&old, &new).round_trip();
    }
}

/// Text of `count` words that follow from `seed`.
fn words(seed: u64, count: usize) -> Vec<String> {
    noise(seed, 2 * count)
        .chunks(2)
        .map(|pair| {
            format!(
                "word{} ",
                usize::from(pair[0]) * 7 + usize::from(pair[1] & 3)
            )
        })
        .collect()
}

#[test]
fn many_edits_of_a_text_are_predicted_from_the_old_one() {
    let old = words(7, 30_000);
    let mut new = old.clone();
    let others = words(8, 600);
    for (i, other) in others.iter().enumerate() {
        new[i * 50 + i % 13] = other.clone();
    }
    new[9_000..].rotate_left(4_000);
    let size = Files::new(old.concat().as_bytes(), new.concat().as_bytes()).round_trip();
    // 600 places, each with a word of about ten bits and its distance of about four.
    assert!((900..2_400).contains(&size), "{size}");
}

#[test]
fn an_interrupted_run_is_taken_up_again() {
    let data = noise(5, 20 * 200_000);
    let file = |data: &[u8]| {
        // 4 MB each: nine fill the first stream of tensors.
        const NAMES: [&str; 18] = [
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q",
            "r",
        ];
        let tensors: Vec<_> = NAMES
            .iter()
            .map(|name| (*name, 3, &[64_u64, 100_000][..], data))
            .collect();
        gguf("t", &tensors)
    };
    let files = Files::new(&file(&data), &file(&changed(&data, 300)));
    files.diff();
    // A delta that ends early stops in the second stream, like a cut of power.
    let delta = fs::read(files.path("delta")).unwrap();
    files.apply().unwrap();
    let result = fs::read(files.path("out")).unwrap();
    fs::remove_file(files.path("out")).unwrap();
    let mut half = result.clone();
    let middle = half.len() / 2 + (8 << 20);
    half[middle..].fill(0);
    fs::write(files.path("out.part"), &half).unwrap();
    let (head, _) = plan::Head::parse(&delta, delta.len() as u64).unwrap();
    assert!(head.streams.len() > 2);
    let title = format!(
        "{} {}\n",
        head.result.to_hex(),
        crate::digest::Digest::blake3(&head.write()).to_hex()
    );
    fs::write(files.path("out.part.journal"), format!("{title}0\n1")).unwrap();
    let applied = files.apply().unwrap();
    assert_eq!(
        applied.resumed, 1,
        "a line that is not complete does not count"
    );
    assert!(fs::read(files.path("out")).unwrap() == result);
}

#[test]
fn another_base_and_any_damage_are_refused() {
    let data = noise(5, 20 * 2000);
    let file = |data: &[u8]| gguf("t", &[("w", 3, &[64, 1000], data)]);
    let files = Files::new(&file(&data), &file(&changed(&data, 30)));
    files.diff();
    fs::write(files.path("old"), file(&changed(&data, 31))).unwrap();
    assert!(matches!(files.apply(), Err(DeltaError::OtherBase(_))));
    fs::write(files.path("old"), b"short").unwrap();
    assert!(matches!(files.apply(), Err(DeltaError::OtherBase(_))));
    fs::write(files.path("old"), file(&data)).unwrap();
    let good = fs::read(files.path("delta")).unwrap();
    for at in (0..good.len()).step_by(11) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(files.path("delta"), &bytes).unwrap();
        match files.apply() {
            Err(error) => {
                assert!(error.is_refusal(), "byte {at}: {error}");
                assert!(!files.path("out").exists());
            }
            // The last bits of a stream may mean the same either way; the result is then right, which its hash proved.
            Ok(_) => {
                assert!(at + 16 > good.len(), "byte {at}");
                assert!(
                    fs::read(files.path("out")).unwrap() == fs::read(files.path("new")).unwrap()
                );
                fs::remove_file(files.path("out")).unwrap();
            }
        }
    }
    for length in 0..good.len().min(60) {
        fs::write(files.path("delta"), &good[..length]).unwrap();
        assert!(files.apply().is_err());
    }
    let mut bomb = good.clone();
    let limits = Limits {
        file_bytes: 1000,
        ..Limits::default()
    };
    fs::write(files.path("delta"), &bomb).unwrap();
    let refused = apply(
        &files.path("old"),
        &files.path("delta"),
        &files.path("out"),
        &limits,
    );
    assert!(matches!(refused, Err(DeltaError::TooLarge(..))));
    bomb.truncate(43);
    bomb.extend([0xff; 8]);
    fs::write(files.path("delta"), &bomb).unwrap();
    assert!(matches!(files.apply(), Err(DeltaError::NotADelta(_))));
}

proptest! {
    #[test]
    fn any_two_files_survive(old in proptest::collection::vec(0u8..4, 0..400), new in proptest::collection::vec(0u8..4, 0..400)) {
        Files::new(&old, &new).round_trip();
    }

    #[test]
    fn any_delta_is_an_answer(rest in proptest::collection::vec(any::<u8>(), 0..200), kind in any::<bool>()) {
        let data = noise(5, 20 * 20);
        let old = gguf("t", &[("w", 3, &[64, 10], &data)]);
        let files = Files::new(&old, b"");
        let head = plan::Head {
            result: crate::digest::Digest::blake3(b"?"),
            base: plan::Head::base_of(crate::digest::Digest::blake3(&old)),
            base_length: old.len() as u64,
            result_length: old.len() as u64,
            tensors: kind,
            streams: vec![0],
        };
        let mut delta = head.write();
        delta.extend(rest);
        fs::write(files.path("delta"), delta).unwrap();
        prop_assert!(files.apply().is_err());
    }
}
