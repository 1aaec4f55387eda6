//! The paths of `examples/leak_paths`, on a part of the cases: nothing personal arrives.

#[path = "../examples/leak_paths/paths.rs"]
mod paths;

#[test]
fn nothing_personal_arrives_on_any_path() {
    let figures = paths::run(23, 8);
    assert!(figures.requests > 3000, "{figures:?}");
    for path in [
        "Answer", "Retry", "Fallback", "Silent", "Unsure", "Slow", "Broken",
    ] {
        assert!(
            figures.by_path.get(path).is_some_and(|sent| *sent > 50),
            "{:?}",
            figures.by_path
        );
    }
    assert_eq!((figures.hedged, figures.public_hedged), (0, 1));
    let shown = &figures.leaks[..figures.leaks.len().min(20)];
    assert!(
        shown.is_empty(),
        "{} leaks: {shown:#?}",
        figures.leaks.len()
    );
    assert!(figures.sent > 0 && figures.bytes > 0);
}
