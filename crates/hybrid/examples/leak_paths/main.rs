//! Every recorded case of personal data, in every spelling, on every path of a request, with a handover at every place of the text:
//! `leak_paths [EVERY]` takes every EVERYth case (1). Fails when a byte of it arrives at a provider.

mod paths;

fn main() -> Result<(), String> {
    let every = match std::env::args().nth(1) {
        Some(text) => text.parse().map_err(|_| "EVERY is no number")?,
        None => 1,
    };
    let begun = std::time::Instant::now();
    let figures = paths::run(every, usize::MAX);
    println!("{:#?}", figures.by_path);
    println!(
        "{} requests with personal data in {:.0} s: {} were sent to providers, {} bytes; {} leaks",
        figures.requests,
        begun.elapsed().as_secs_f64(),
        figures.sent,
        figures.bytes,
        figures.leaks.len()
    );
    for leak in figures.leaks.iter().take(40) {
        println!("{leak}");
    }
    match figures.leaks.is_empty() && figures.sent > 0 && figures.hedged == 0 {
        true => Ok(()),
        false => Err("personal data arrived, or nothing was sent".into()),
    }
}
