//! The tile program: what double buffering gains, and that no tile leaves the chip's bounds.

use std::path::Path;

use ondine_npu::profile::{self, Profile};
use ondine_npu::program::{Lane, Layout, Region, Step, Timeline, lower, schedule};
use ondine_runtime::Limits;
use ondine_runtime::hf::describe;
use ondine_runtime::model::ModelSpec;

/// Where transfers and arithmetic take the same time, two buffers are at least half as fast again as one.
#[test]
fn two_buffers_pay_where_transfers_and_arithmetic_are_balanced() {
    let spec = spec("llama-3.2-1b");
    for device in ["intel-npu-4000", "xdna2", "snapdragon-x-elite"] {
        let profile = profile::named(device).unwrap();
        let (rows, double) = (1..=160)
            .step_by(3)
            .map(|rows| (rows, timed(&spec, &profile, rows, 2)))
            .min_by(|(_, a), (_, b)| imbalance(a).total_cmp(&imbalance(b)))
            .unwrap();
        let single = timed(&spec, &profile, rows, 1);
        let gain = single.seconds / double.seconds;
        println!(
            "{device}: {rows} rows, imbalance {:.2}, gain {gain:.2}",
            imbalance(&double)
        );
        assert!(imbalance(&double) < 1.25, "{device}");
        assert!(gain >= 1.5, "{device}: {gain:.2}");
    }
}

/// How many times longer the longer of the two takes.
fn imbalance(timeline: &Timeline) -> f64 {
    (timeline.dma / timeline.compute).max(timeline.compute / timeline.dma)
}

/// A unit does one thing at a time, no tile starts before what it reads is written, and the step is as long as its last
/// tile.
#[test]
fn the_schedule_keeps_the_order() {
    let spec = spec("qwen2-0.5b");
    for profile in profile::all().unwrap() {
        let program = lower(&step(&spec, profile, 4, 2)).unwrap();
        let timeline = schedule(&program, profile, &profile.precisions[0], 1.0, true);
        assert_eq!(timeline.events.len(), program.tiles.len());
        let mut free = std::collections::HashMap::<Lane, f64>::new();
        let mut written = std::collections::HashMap::<Region, f64>::new();
        for event in &timeline.events {
            let tile = &program.tiles[event.tile];
            assert!(event.start >= free.get(&tile.lane).copied().unwrap_or(0.0));
            for region in tile.reads.iter() {
                assert!(event.start >= written.get(&region).copied().unwrap_or(0.0));
            }
            for region in tile.writes.iter() {
                let last = written.entry(region).or_default();
                *last = last.max(event.end);
            }
            free.insert(tile.lane, event.end);
            assert!(event.end <= timeline.seconds);
        }
    }
}

/// Places do not overlap, but for those that take turns, and end within the chip.
#[test]
fn places_lie_within_the_chip() {
    for model in ["qwen2-0.5b", "llama-3.1-8b", "phi-3-mini-3.8b"] {
        let spec = spec(model);
        for profile in profile::all().unwrap() {
            for buffers in [1, 2] {
                let layout = lower(&step(&spec, profile, 1, buffers)).unwrap().layout;
                assert!(layout.used <= layout.sram, "{} {model}", profile.name);
                check(&layout, &profile.name);
            }
        }
    }
}

fn check(layout: &Layout, device: &str) {
    let attention = [
        Region::Query,
        Region::Key,
        Region::Value,
        Region::Mixed,
        Region::Accumulator,
    ];
    let feed_forward = [Region::Inner, Region::Up];
    let turns = |a: &Region, b: &Region| attention.contains(a) && feed_forward.contains(b);
    for (index, a) in Region::ALL.iter().enumerate() {
        for b in &Region::ALL[index + 1..] {
            let (p, q) = (layout.place(*a), layout.place(*b));
            let apart = p.offset + p.bytes <= q.offset || q.offset + q.bytes <= p.offset;
            let elsewhere = layout.on_host(*a) != layout.on_host(*b);
            let empty = p.bytes == 0 || q.bytes == 0;
            assert!(
                apart || elsewhere || empty || turns(a, b) || turns(b, a),
                "{device}: {a:?} {b:?}"
            );
        }
    }
}

fn timed(spec: &ModelSpec, profile: &Profile, rows: usize, buffers: usize) -> Timeline {
    // A chunk from the middle of a prompt: the head, which one row reads alone, is never balanced.
    let program = lower(&Step {
        wanted: 0,
        ..step(spec, profile, rows, buffers)
    })
    .unwrap();
    schedule(&program, profile, &profile.precisions[0], 1.0, false)
}

fn step<'a>(spec: &'a ModelSpec, profile: &'a Profile, rows: usize, buffers: usize) -> Step<'a> {
    Step {
        spec,
        profile,
        precision: &profile.precisions[0],
        rows,
        position: 0,
        context: 512,
        wanted: 1,
        buffers,
    }
}

fn spec(model: &str) -> ModelSpec {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    describe(&directory.join(format!("{model}.json")), &Limits::default()).unwrap()
}
