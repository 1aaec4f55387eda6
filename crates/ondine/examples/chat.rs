//! Asks a model one question and streams the answer:
//! `cargo run --release -p ondine --example chat -- 'Why is the sky blue?'`

use ondine::{Engine, GenerateOptions};
use std::io::Write;

fn main() -> Result<(), ondine::Error> {
    let question = std::env::args().nth(1);
    let engine = Engine::open("smollm2-135m-instruct")?;
    let mut chat = engine.chat()?;
    let question = question.as_deref().unwrap_or("Why is the sky blue?");
    for piece in chat.send(question, GenerateOptions::default())? {
        print!("{}", piece?.text);
        let _ = std::io::stdout().flush();
    }
    println!();
    Ok(())
}
