use proptest::prelude::*;
use serde_json::json;

use super::super::EncodeOptions;
use super::*;

fn build(json: &Value) -> Result<Tokenizer, TokenizerError> {
    build_with(json, &Config::default())
}

fn build_with(json: &Value, config: &Config) -> Result<Tokenizer, TokenizerError> {
    from_json(
        "tokenizer.json",
        json.to_string().as_bytes(),
        config,
        &Limits::default(),
    )
}

/// A tokenizer in GPT-2's alphabet: "hello" and " hello" as words, "<s>" before each text.
fn small() -> Value {
    json!({
        "added_tokens": [
            {"id": 13, "content": "<s>", "special": true, "normalized": false},
            {"id": 14, "content": "<tool>", "special": false, "normalized": false, "rstrip": true},
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        ]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [13], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE",
            "vocab": {"h": 0, "e": 1, "l": 2, "o": 3, "Ġ": 4, "1": 5, "Ã": 6, "©": 7,
                      "he": 8, "ll": 9, "llo": 10, "hello": 11, "Ġhello": 12},
            "merges": ["h e", "l l", ["ll", "o"], "he llo", "Ġ hello"]}
    })
}

fn ids(tokenizer: &Tokenizer, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
    tokenizer.encode(
        text,
        EncodeOptions {
            add_special,
            parse_special,
        },
    )
}

#[test]
fn the_whole_way_of_a_text() {
    let tokenizer = build(&small()).unwrap();
    assert_eq!(ids(&tokenizer, "hello hello", true, false), [13, 11, 12]);
    assert_eq!(ids(&tokenizer, "11 hello", false, false), [5, 5, 12]);
    // NFC: e and a combining accent become one character of two bytes.
    assert_eq!(ids(&tokenizer, "e\u{301}", false, false), [6, 7]);
    assert_eq!(ids(&tokenizer, "<s>hello", false, true), [13, 11]);
    assert_eq!(
        ids(&tokenizer, "<s>hello", false, false),
        [11],
        "characters without a token are dropped"
    );
    assert_eq!(
        ids(&tokenizer, "<tool> \n hello", false, false),
        [14, 11],
        "whitespace is swallowed"
    );
    assert_eq!(tokenizer.decode(&[13, 11, 12, 6, 7], false), "hello helloé");
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (Some(13), true));
}

#[test]
fn config_files_name_roles_and_flags() {
    let mut json = small();
    json["post_processor"] = Value::Null;
    let config = |flag: bool| {
        Config::new(
            json!({"bos_token": {"content": "<s>"}, "eos_token": "llo", "add_bos_token": flag}),
            Value::Null,
            json!({"eos_token_id": [11, 12, 4000000000u64, -1]}),
            json!({"eos_token_id": 9}),
        )
    };
    let tokenizer = build_with(&json, &config(true)).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(13), Some(10)));
    assert_eq!(tokenizer.end_of_generation(), [9, 10, 11, 12]);
    assert_eq!(ids(&tokenizer, "", true, false), [13]);
    let tokenizer = build_with(&small(), &config(false)).unwrap();
    assert_eq!(
        ids(&tokenizer, "", true, false),
        [0; 0],
        "the flag overrules the template"
    );
}

/// SentencePiece's spelling: marks for spaces, byte tokens for what has no piece.
#[test]
fn sentence_piece_spelling() {
    let model = json!({"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
        "vocab": {"<unk>": 0, "<0xC3>": 1, "<0xA9>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "ab": 7, "▁▁": 8},
        "merges": [["▁", "a"], ["a", "b"], ["▁", "▁"]]});
    let legacy = json!({
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": model.clone()});
    let tokenizer = build(&legacy).unwrap();
    assert_eq!(ids(&tokenizer, "ab  b", false, true), [6, 5, 8, 5]);
    assert_eq!(ids(&tokenizer, "éxy", false, true), [3, 1, 2, 0]);
    assert_eq!(tokenizer.decode(&[6, 5, 8, 5, 1, 2], false), "ab  bé");
    assert_eq!(
        ids(&tokenizer, "a<unk>a", false, true),
        [6, 0, 6],
        "every part gets a mark"
    );

    let metaspace = |scheme: &str, split: bool| {
        let json = json!({
            "added_tokens": [{"id": 0, "content": "<unk>", "special": true}],
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split},
            "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split},
            "model": model.clone()});
        build(&json).unwrap()
    };
    assert_eq!(
        ids(&metaspace("first", false), "a<unk>a", false, true),
        [6, 0, 4]
    );
    assert_eq!(
        ids(&metaspace("always", false), "a<unk>a  a", false, true),
        [6, 0, 6, 3, 6]
    );
    assert_eq!(
        ids(&metaspace("always", true), "a  a", false, true),
        [6, 3, 6]
    );
    assert_eq!(ids(&metaspace("never", true), " a", false, true), [6]);
    assert_eq!(metaspace("first", false).decode(&[6, 6], false), "a a");
    assert_eq!(metaspace("never", false).decode(&[6, 6], false), " a a");
}

#[test]
fn splits_behave_as_they_are_called() {
    let words = |behavior: &str, invert: bool| {
        let split = json!({"type": "Split", "pattern": {"Regex": "-"}, "behavior": behavior, "invert": invert});
        let (steps, _) = steps::parse(&split).unwrap();
        let words = steps::Words::new("-a--b-", &steps, true);
        words.iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(words("Isolated", false), ["-", "a", "-", "-", "b", "-"]);
    assert_eq!(words("Removed", false), ["a", "b"]);
    assert_eq!(words("Removed", true), ["-", "-", "-", "-"]);
    assert_eq!(words("Contiguous", false), ["-", "a", "--", "b", "-"]);
    assert_eq!(words("MergedWithPrevious", false), ["-", "a-", "-", "b-"]);
    assert_eq!(words("MergedWithNext", false), ["-a", "-", "-b", "-"]);
}

/// The hand-written splitters are the expressions that they stand for.
#[test]
fn known_expressions_have_equal_splitters() {
    let alphabet: Vec<char> = "aZſK' 'stm1²Ⅷ\u{301}\n\r\t\u{a0}\u{3000}.,-日é😀"
        .chars()
        .collect();
    let mut state = 1u32;
    for _ in 0..3000 {
        let text: String = (0..12)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                alphabet[(state >> 16) as usize % alphabet.len()]
            })
            .collect();
        for source in steps::known_sources() {
            let cut = |source: &str| {
                let split =
                    json!({"type": "Split", "pattern": {"Regex": source}, "behavior": "Isolated"});
                let (steps, _) = steps::parse(&split).unwrap();
                let words = steps::Words::new(&text, &steps, true);
                words.iter().map(str::to_owned).collect::<Vec<_>>()
            };
            // A group around it keeps the expression from being recognised.
            assert_eq!(cut(source), cut(&format!("(?:{source})")), "{text:?}");
        }
    }
}

#[test]
fn what_cannot_be_right_is_refused_in_one_sentence() {
    let change = |pointer: &str, value: Value| {
        let mut json = small();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[key] = value;
        let error = build(&json)
            .err()
            .unwrap_or_else(|| panic!("{pointer} is accepted"));
        let error = error.to_string();
        assert!(!error.contains('\n') && error.len() < 400, "{error}");
        error
    };
    for (pointer, value, expected) in [
        ("/model/vocab", json!({"a": -1}), "id -1"),
        ("/model/vocab", json!({"a": 4000000000u64}), "id 4000000000"),
        (
            "/model/vocab",
            json!({"a": 1, "b": 1}),
            "the id 1 to two tokens",
        ),
        ("/model/vocab", json!({"a": 0.5}), "line 1"),
        (
            "/model/merges",
            json!(["h q"]),
            "entry 0 names a piece that is no token",
        ),
        (
            "/model/merges",
            json!(["h e l"]),
            "a merge is not two pieces",
        ),
        ("/model/merges", json!([["h"]]), "fewer than two"),
        ("/model/merges", json!([["h", "e", "l"]]), "more than two"),
        ("/model/type", json!("Unigram"), "the model type 'Unigram'"),
        ("/model/unk_token", json!("<none>"), "unk_token"),
        ("/model/end_of_word_suffix", json!("</w>"), "suffix"),
        (
            "/normalizer",
            json!({"type": "Precompiled"}),
            "the normalizer 'Precompiled'",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "UnicodeScripts"}),
            "the pre-tokenizer 'UnicodeScripts'",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(?<=a)b"}, "behavior": "Isolated"}),
            "a regular expression",
        ),
        (
            "/post_processor",
            json!({"type": "RobertaProcessing", "cls": ["x", 99], "sep": ["y", 0]}),
            "post_processor",
        ),
        (
            "/added_tokens",
            json!([{"id": 3, "content": "new"}]),
            "the id 3 to two tokens",
        ),
        (
            "/added_tokens",
            json!([{"id": -5, "content": "new"}]),
            "id -5",
        ),
    ] {
        let error = change(pointer, value);
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    let nested = (0..500).fold(
        json!(null),
        |inner, _| json!({"type": "Sequence", "normalizers": [inner]}),
    );
    change("/normalizer", nested);
    let limits = Limits {
        vocabulary: 8,
        ..Limits::default()
    };
    let error = from_json(
        "f",
        small().to_string().as_bytes(),
        &Config::default(),
        &limits,
    );
    assert!(error.err().unwrap().to_string().contains("at most 8"));
}

#[test]
fn a_unigram_list_is_named_as_what_it_is() {
    let json =
        json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}});
    assert!(
        build(&json)
            .err()
            .unwrap()
            .to_string()
            .contains("'Unigram'")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Damaged files are refused or used, never a panic.
    #[test]
    fn damaged_files_do_no_harm(position in 0.0..1.0f64, byte in any::<u8>(), cut in 0.0..1.0f64, text in ".*") {
        let mut bytes = small().to_string().into_bytes();
        let at = (bytes.len() as f64 * position) as usize;
        bytes[at] = byte;
        for damaged in [&bytes[..], &bytes[..(bytes.len() as f64 * cut) as usize]] {
            if let Ok(tokenizer) = from_json("f", damaged, &Config::default(), &Limits::default()) {
                let ids = ids(&tokenizer, &text, true, true);
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_len()));
                tokenizer.decode(&ids, true);
            }
        }
    }

    /// Any small vocabulary with any components encodes any text.
    #[test]
    fn any_vocabulary_encodes_any_text(
        texts in proptest::collection::hash_set("[a-cĠ▁é<>]{1,3}", 1..20),
        pairs in proptest::collection::vec((0usize..20, 0usize..20), 0..40),
        flags in any::<[bool; 5]>(),
        added in proptest::collection::vec(("[a-c <é]{0,3}", any::<[bool; 5]>()), 0..4),
        component in 0usize..8,
        text in "[a-cĠ▁é<> \\n1.]{0,40}|.*",
    ) {
        let texts: Vec<String> = texts.into_iter().collect();
        let vocab: serde_json::Map<String, Value> =
            texts.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect();
        let merges: Vec<[&String; 2]> = pairs.iter()
            .map(|&(left, right)| [&texts[left % texts.len()], &texts[right % texts.len()]])
            .filter(|[left, right]| vocab.contains_key(&format!("{left}{right}")))
            .collect();
        let added: Vec<Value> = added.iter().enumerate().map(|(index, (text, set))| json!({
            "id": texts.len() + index, "content": format!("{text}{index}"), "special": set[0],
            "normalized": set[1], "lstrip": set[2], "rstrip": set[3], "single_word": set[4],
        })).collect();
        let pre_tokenizer = [
            json!(null),
            json!({"type": "ByteLevel"}),
            json!({"type": "Metaspace", "replacement": "▁"}),
            json!({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]}),
            json!({"type": "Split", "pattern": {"Regex": r"\s+|b*?"}, "behavior": "MergedWithNext", "invert": true}),
            json!({"type": "Punctuation", "behavior": "Contiguous"}),
            json!({"type": "Whitespace"}),
            json!({"type": "Split", "pattern": {"String": "ab"}, "behavior": "Removed"}),
        ][component].clone();
        let json = json!({
            "added_tokens": added,
            "normalizer": if flags[4] { json!({"type": "Prepend", "prepend": "▁"}) } else { json!(null) },
            "pre_tokenizer": pre_tokenizer,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": flags[0],
                "byte_fallback": flags[1], "fuse_unk": flags[2],
                "unk_token": if flags[3] { json!(texts[0]) } else { json!(null) }},
        });
        let tokenizer = build(&json).unwrap();
        let ids = ids(&tokenizer, &text, true, true);
        prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_len()));
        tokenizer.decode(&ids, true);
    }
}
