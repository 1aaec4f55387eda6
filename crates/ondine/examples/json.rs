//! Gets an answer that conforms to a JSON schema:
//! `cargo run --release -p ondine --example json`

use ondine::constraint::ConstraintSpec;
use ondine::sample::SamplingOptions;
use ondine::{Engine, GenerateOptions};

const SCHEMA: &str = r#"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120}
    },
    "required": ["name", "age"],
    "additionalProperties": false
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::open("smollm2-135m-instruct")?;
    let spec = ConstraintSpec::JsonSchema(SCHEMA.into());
    let options = GenerateOptions {
        sampling: SamplingOptions::greedy(),
        constraint: Some(engine.model().constraints()?.build(&spec)?),
        max_tokens: Some(100),
        ..GenerateOptions::default()
    };
    let mut chat = engine.chat()?;
    let mut text = String::new();
    for piece in chat.send(
        "Describe Ada Lovelace as JSON with her name and age.",
        options,
    )? {
        text.push_str(&piece?.text);
    }
    println!("{text}");
    Ok(())
}
