//! Brings a model onto this machine and prints where it is: `cargo run -p ondine-hub --example pull smollm2-135m-instruct`

use ondine_hub::{Event, Hub, HubError, Progress};

struct Notes;

impl Progress for Notes {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Trying { source } => eprintln!("from {source}"),
            Event::SourceFailed { source, reason } => eprintln!("{source} failed: {reason}"),
            Event::Note(text) => eprintln!("{text}"),
            _ => {}
        }
    }
}

fn main() -> Result<(), HubError> {
    let name = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "smollm2-135m-instruct".to_string());
    let found = Hub::from_environment()?.resolve(&name, &Notes)?;
    println!("{}", found.path.display());
    Ok(())
}
