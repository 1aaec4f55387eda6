//! How fast the scanner reads a file on one core: `cargo run --release --example scan_speed -- FILE`.

use ondine_hybrid::pii::{ScanOptions, Scanner};

/// Time that this process ran, so that other programs on the machine do not count.
fn processor_seconds() -> f64 {
    let schedule = std::fs::read_to_string("/proc/self/schedstat").expect("a Linux kernel");
    let nanoseconds: f64 = schedule
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("a number");
    nanoseconds / 1e9
}

fn main() {
    let path = std::env::args().nth(1).expect("a text file");
    let text = std::fs::read_to_string(path).expect("readable UTF-8");
    let options = ScanOptions {
        min_confidence: ScanOptions::ORDINARY,
        ..ScanOptions::default()
    };
    let scanner = Scanner::new(options).expect("patterns compile");
    let mut counts = std::collections::BTreeMap::new();
    for finding in scanner.scan(&text) {
        *counts.entry(finding.entity.to_string()).or_insert(0_usize) += 1;
    }
    println!("{counts:?}");
    let best = (0..5)
        .map(|_| {
            let start = processor_seconds();
            std::hint::black_box(scanner.scan(&text).len());
            processor_seconds() - start
        })
        .fold(f64::INFINITY, f64::min);
    println!(
        "{:.1} MB, {:.1} MB/s",
        text.len() as f64 / 1e6,
        text.len() as f64 / 1e6 / best
    );
}
