//! Tokenizers from GGUF metadata: small vocabularies made here, any text, hostile files.

use proptest::prelude::*;

use super::*;
use crate::gguf::HeaderWriter;
use crate::source::Memory;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

fn build(writer: &HeaderWriter) -> Result<Tokenizer, TokenizerError> {
    build_within(writer, &Limits::default())
}

fn build_within(writer: &HeaderWriter, limits: &Limits) -> Result<Tokenizer, TokenizerError> {
    let memory = Arc::new(Memory::new("memory", writer.finish()));
    Tokenizer::from_gguf(&ModelFile::from_source(memory, limits)?.metadata, limits)
}

/// All bytes in GPT-2's alphabet, then `more` as control tokens; every pair of ASCII letters merges.
fn byte_level(pre: &str, more: &[&str]) -> HeaderWriter {
    let letter = |byte: u8| byte_alphabet::character(byte).to_string();
    let mut tokens: Vec<String> = (0..=255).map(letter).collect();
    let mut merges = Vec::new();
    for left in b'a'..=b'z' {
        for right in b'a'..=b'z' {
            tokens.push(format!("{}{}", left as char, right as char));
            merges.push(format!("{} {}", left as char, right as char));
        }
    }
    tokens.push("Ġth".to_owned());
    merges.push("Ġ th".to_owned());
    let mut types = vec![1; tokens.len()];
    for text in more {
        tokens.push((*text).to_owned());
        types.push(3);
    }
    let mut writer = HeaderWriter::new();
    writer
        .string(MODEL, "gpt2")
        .string(PRE, pre)
        .string_array(TOKENS, &tokens)
        .i32_array(TYPES, &types)
        .string_array(MERGES, &merges);
    writer
}

/// Score-ordered pieces with byte tokens.
fn sentence_piece() -> HeaderWriter {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![2, 3, 3];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        types.push(6);
    }
    for text in ["▁", "a", "b", "c", "▁a", "ab", "bc", "▁▁", "é", "的"] {
        tokens.push(text.to_owned());
        types.push(1);
    }
    let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let mut writer = HeaderWriter::new();
    writer
        .string(MODEL, "llama")
        .string_array(TOKENS, &tokens)
        .f32_array(SCORES, &scores)
        .i32_array(TYPES, &types);
    writer
}

#[test]
fn special_tokens_only_when_asked() {
    let tokenizer = build(&byte_level("gpt-2", &["<|im_start|>", "<|im_end|>"])).unwrap();
    let [start, end] = ["<|im_start|>", "<|im_end|>"].map(|text| tokenizer.id_of(text).unwrap());
    let encode = |parse_special| {
        let options = EncodeOptions {
            add_special: false,
            parse_special,
        };
        tokenizer.encode("<|im_start|>th<|im_end|>", options)
    };
    let parsed = encode(true);
    assert_eq!(parsed, [start, tokenizer.id_of("th").unwrap(), end]);
    assert!(!encode(false).iter().any(|id| [start, end].contains(id)));
    assert_eq!(tokenizer.decode(&parsed, false), "th");
    assert_eq!(
        tokenizer.decode(&encode(false), false),
        "<|im_start|>th<|im_end|>"
    );
    assert!(tokenizer.is_end_of_generation(end));
}

#[test]
fn score_order_and_byte_tokens() {
    let tokenizer = build(&sentence_piece()).unwrap();
    let texts = |text: &str| {
        let ids = tokenizer.encode(text, EncodeOptions::default());
        let text = |id| tokenizer.token_text(id).unwrap().into_owned();
        ids.into_iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(texts("abc"), ["▁a", "bc"], "the better score merges first");
    assert_eq!(texts(" é€"), ["▁▁", "é", "<0xE2>", "<0x82>", "<0xAC>"]);
    assert_eq!(tokenizer.adds_bos().then(|| tokenizer.bos()), Some(Some(1)));
}

#[test]
fn an_unknown_pre_tokenizer_is_an_error_and_a_missing_one_a_warning() {
    let error = build(&byte_level("no-such-thing", &[])).err().unwrap();
    assert!(
        error.to_string().contains("'no-such-thing' is not known"),
        "{error}"
    );
    let unnamed = build(&byte_level("", &[])).unwrap();
    assert_eq!(unnamed.warnings().len(), 1);
    assert!(
        build(&byte_level("gpt-2", &[]))
            .unwrap()
            .warnings()
            .is_empty()
    );
}

/// Every pre-tokenizer loses nothing and reads every kind of character.
#[test]
fn byte_level_models_are_lossless() {
    for name in pretokenizer::NAMES {
        let tokenizer = build(&byte_level(name, &["<|end|>"])).unwrap();
        if matches!(&tokenizer.model, Model::Words { model, .. } if model.alphabet == Alphabet::Text)
        {
            continue;
        }
        let mut state = 7u32;
        for _ in 0..200 {
            let text: String = (0..24)
                .filter_map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let scale =
                        [0x80, 0x80, 0x800, 0x3100, 0x1_0000, 0x11_0000][(state >> 8) as usize % 6];
                    char::from_u32((state >> 11) % scale)
                })
                .collect();
            let ids = tokenizer.encode(&text, EncodeOptions::default());
            assert_eq!(tokenizer.decode(&ids, false), text, "{name}");
        }
    }
}

#[test]
fn long_runs_take_their_time_in_proportion() {
    for name in ["llama-bpe", "gpt-2", "deepseek-v3", "tekken"] {
        let tokenizer = build(&byte_level(name, &[])).unwrap();
        for unit in ["a", " ", "\n", "7", "的", "!", "'", "e\u{301}"] {
            let text = unit.repeat(100_000);
            let ids = tokenizer.encode(&text, EncodeOptions::default());
            assert_eq!(tokenizer.decode(&ids, false), text, "{name} {unit:?}");
        }
    }
}

#[test]
fn hostile_vocabularies_are_refused_in_one_sentence() {
    let refused = |writer: &HeaderWriter, limits: &Limits, expected: &str| {
        let error = build_within(writer, limits)
            .expect_err(expected)
            .to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    };
    let limits = Limits::default();
    let small = Limits {
        vocabulary: 100,
        ..Limits::default()
    };
    refused(&byte_level("gpt-2", &[]), &small, "at most 100");
    refused(&byte_level("gpt-2", &["a"]), &limits, "have the same text");
    let model = |model: &str| {
        let mut writer = HeaderWriter::new();
        writer.string(MODEL, model);
        writer
    };
    refused(&model("wordpiece"), &limits, "'wordpiece' is not supported");
    refused(&model("llama"), &limits, TOKENS);
    refused(
        model("llama").i32_array(TOKENS, &[1]),
        &limits,
        "is not made of strings",
    );
    let mut short = model("llama");
    short
        .string_array(TOKENS, &["a", "b"])
        .f32_array(SCORES, &[0.0]);
    refused(&short, &limits, "1 entries for 2 tokens");
    let mut without_merges = model("gpt2");
    without_merges
        .string(PRE, "gpt-2")
        .string_array(TOKENS, &["a"]);
    refused(&without_merges, &limits, MERGES);
}

/// A role that names no token is dropped; the rest works.
#[test]
fn roles_outside_the_vocabulary_are_dropped() {
    let mut writer = sentence_piece();
    writer.u32("tokenizer.ggml.eot_token_id", 4_000_000_000);
    let tokenizer = build(&writer).unwrap();
    assert_eq!(tokenizer.special().eot, None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any bytes with any vocabulary: no panic, ids inside the vocabulary, streaming equals decoding.
    #[test]
    fn any_bytes_with_any_vocabulary(
        tokens in proptest::collection::hash_set("[a-cĠ▁é<>]{0,3}", 1..24),
        types in proptest::collection::vec(0i32..8, 24),
        merges in proptest::collection::vec("[a-cĠé]{0,2} ?[a-cĠé]{0,2}", 0..24),
        scores in proptest::collection::vec(any::<f32>(), 24),
        name in proptest::sample::select(pretokenizer::NAMES),
        llama in any::<bool>(),
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            "[a-cĠ▁é<> \\n1.']{0,60}".prop_map(String::into_bytes),
            ".{0,60}".prop_map(String::into_bytes),
        ],
    ) {
        let tokens: Vec<String> = tokens.into_iter().collect();
        let mut writer = HeaderWriter::new();
        writer
            .string(MODEL, if llama { "llama" } else { "gpt2" })
            .string(PRE, name)
            .string_array(TOKENS, &tokens)
            .i32_array(TYPES, &types)
            .f32_array(SCORES, &scores)
            .string_array(MERGES, &merges);
        let tokenizer = build(&writer).unwrap();
        for parse_special in [false, true] {
            let options = EncodeOptions { add_special: true, parse_special };
            let ids = tokenizer.encode_bytes(&bytes, options);
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokens.len()));
            let mut stream = tokenizer.stream_decoder(true);
            let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            streamed.push_str(&stream.finish());
            let raw: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
            prop_assert_eq!(streamed, String::from_utf8_lossy(&raw).into_owned());
        }
    }
}
