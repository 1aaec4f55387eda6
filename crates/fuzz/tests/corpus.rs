//! The corpus of every fuzz target, replayed: seeds, and each input that once was a finding.

use ondine_fuzz::{TARGETS, corpus_directory, read_inputs};

#[test]
fn no_input_of_the_corpus_is_a_finding() {
    for target in TARGETS {
        for (path, bytes) in read_inputs(&corpus_directory(target)).expect("the corpus is readable")
        {
            println!("{}", path.display());
            (target.run)(&bytes);
        }
    }
}

#[test]
fn every_seed_and_its_halves_are_read() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seed", target.name);
        for seed in seeds {
            (target.run)(&seed);
            (target.run)(&seed[..seed.len() / 2]);
            (target.run)(&seed[seed.len() / 2..]);
        }
    }
}

#[test]
fn the_corpus_is_small() {
    for target in TARGETS {
        let inputs = read_inputs(&corpus_directory(target)).expect("the corpus is readable");
        let bytes: usize = inputs.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(
            bytes < 150_000,
            "the corpus of {} holds {bytes} bytes",
            target.name
        );
    }
}
