//! JSON schemas, regular expressions and grammars that a user gives to constrain the output.

use crate::Target;
use ondine_fixtures::Tiny;
use ondine_runtime::Limits;
use ondine_runtime::constraint::{ConstraintFactory, ConstraintSpec};
use ondine_runtime::gguf::ModelFile;
use ondine_runtime::source::Memory;
use ondine_runtime::tokenizer::Tokenizer;
use std::sync::Arc;

pub(super) const TARGET: Target = Target {
    name: "constraint",
    run,
    words: &[
        "\"type\":\"object\"",
        "\"properties\":{",
        "\"required\":[",
        "\"$ref\":\"#\"",
        "\"$defs\":{",
        "\"anyOf\":[",
        "\"allOf\":[",
        "\"enum\":[",
        "\"pattern\":\"",
        "\"maxLength\":1000000000",
        "\"minItems\":1000000",
        "\"additionalProperties\":false",
        "start: ",
        "(a*)*",
        "{1000000000}",
        "%json {",
    ],
    seeds,
};

/// Tokens taken from each constraint, the first allowed one each time.
const STEPS: usize = 24;

thread_local! {
    static FACTORY: Option<ConstraintFactory> = factory();
}

/// The first byte chooses between schema, expression and grammar.
fn run(bytes: &[u8]) {
    let Some((kind, text)) = bytes.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let spec = match kind {
        b'r' => ConstraintSpec::Regex(text.to_string()),
        b'l' => ConstraintSpec::Lark(text.to_string()),
        _ => ConstraintSpec::JsonSchema(text.to_string()),
    };
    FACTORY.with(|factory| {
        let Some(factory) = factory else { return };
        let Ok(mut constraint) = factory.build(&spec) else {
            return;
        };
        for _ in 0..STEPS {
            if constraint.must_stop() {
                return;
            }
            let Ok(mask) = constraint.mask() else { return };
            let tokens = u32::try_from(mask.vocabulary()).unwrap_or(u32::MAX);
            let Some(token) = (0..tokens).find(|&token| mask.allows(token)) else {
                return;
            };
            assert!(
                constraint.commit(token).is_ok(),
                "an allowed token was refused"
            );
        }
    });
}

fn factory() -> Option<ConstraintFactory> {
    let limits = Limits::default();
    let tiny = Tiny::new("llama", 1).gguf();
    let file = ModelFile::from_source(Arc::new(Memory::new("tiny", tiny)), &limits).ok()?;
    let tokenizer = Tokenizer::from_gguf(&file.metadata, &limits).ok()?;
    ConstraintFactory::new(&Arc::new(tokenizer)).ok()
}

fn seeds() -> Vec<Vec<u8>> {
    [
        r#"j{"type":"object","properties":{"name":{"type":"string","maxLength":10},"age":{"type":"integer","minimum":0,"maximum":150},"tags":{"type":"array","items":{"enum":["a","b"]},"maxItems":3}},"required":["name"],"additionalProperties":false}"#,
        r##"j{"$defs":{"tree":{"type":"object","properties":{"left":{"$ref":"#/$defs/tree"},"value":{"anyOf":[{"type":"null"},{"type":"number"}]}}}},"$ref":"#/$defs/tree"}"##,
        r#"j{"type":"string","pattern":"^[a-z]{2,4}-[0-9]+$"}"#,
        r"r(yes|no)( [0-9]{4}-[0-9]{2})?",
        "lstart: \"a\" b* /[0-9]+/\nb: \"b\" | \"c\" start\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
