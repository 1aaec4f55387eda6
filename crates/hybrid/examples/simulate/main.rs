//! Requests in a world with faults, on a clock that jumps: `simulate [COUNT] [SEED]`. Fails when a token is lost or doubled, when
//! private data leaves, or when more than one in a thousand deadlines is missed that somebody could have met.

mod world;

fn main() -> Result<(), String> {
    let number = |index: usize, usual: u64| {
        let given = std::env::args().nth(index).map(|text| text.parse::<u64>());
        given
            .unwrap_or(Ok(usual))
            .map_err(|error| error.to_string())
    };
    let (count, seed) = (number(1, 1_000_000)?, number(2, 1)?);
    let begun = std::time::Instant::now();
    let figures = world::simulate(count, seed);
    let share = figures.met as f64 / figures.possible.max(1) as f64;
    println!("{figures:#?}");
    println!(
        "{count} requests in {:.0} s: {} whole, {} wrong, {} secrets leaked, {:.4} % of {} possible deadlines met",
        begun.elapsed().as_secs_f64(),
        figures.whole,
        figures.wrong,
        figures.leaked,
        100.0 * share,
        figures.possible,
    );
    let is_good =
        figures.whole == count && figures.wrong == 0 && figures.leaked == 0 && share >= 0.999;
    is_good
        .then_some(())
        .ok_or_else(|| "the bounds do not hold".into())
}
