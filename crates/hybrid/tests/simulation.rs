//! The simulated world of `examples/simulate`, in small: nothing lost or doubled, nothing leaked, deadlines met.

#[path = "../examples/simulate/world.rs"]
mod world;

#[test]
fn every_answer_is_whole_and_nothing_private_leaves() {
    let figures = world::simulate(4000, 7);
    assert_eq!(figures.whole, figures.requests);
    assert_eq!(figures.wrong, 0, "{figures:?}");
    assert!(figures.private > 500, "{figures:?}");
    assert_eq!(figures.leaked, 0, "{figures:?}");
    assert!(figures.possible > 1000, "{figures:?}");
    let missed = figures.possible - figures.met;
    assert!(missed * 250 <= figures.possible, "{figures:?}");
    for step in [
        "asked",
        "hedged",
        "insured",
        "took_over",
        "failed",
        "breaker_open",
        "too_slow",
    ] {
        assert!(
            figures.steps.contains_key(step),
            "{step} never happened: {figures:?}"
        );
    }
    assert!(figures.hedged * 10 <= figures.requests, "{figures:?}");
}
