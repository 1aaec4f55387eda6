//! When each tile runs: every unit takes its tiles in order, as soon as what they read is written and what they
//! overwrite was read.

use super::{Lane, Program, Region, Tile};
use crate::profile::{Precision, Profile};

/// A tile's time on its unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    /// Index of the tile.
    pub tile: usize,
    /// Seconds from the step's begin.
    pub start: f64,
    /// Seconds from the step's begin.
    pub end: f64,
}

/// A step's times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timeline {
    /// Seconds from begin to end.
    pub seconds: f64,
    /// Seconds of transfers.
    pub dma: f64,
    /// Seconds of the device's arithmetic, requests not counted.
    pub compute: f64,
    /// Seconds of the processor beside it.
    pub host: f64,
    /// Seconds of requests.
    pub launch: f64,
    /// Bytes to and from memory.
    pub bytes: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Every tile's times, where asked for.
    pub events: Vec<Event>,
}

/// Times `program`. A rate that nobody published costs no time; the planner says so.
pub fn schedule(
    program: &Program,
    profile: &Profile,
    precision: &Precision,
    speed: f64,
    keep_events: bool,
) -> Timeline {
    let bandwidth = profile.bandwidth();
    let matrix_rate = profile.matrix_rate(precision).map(|rate| rate * speed);
    let host_rate = profile.host_elements_per_second;
    let per = |amount: u64, rate: Option<f64>| rate.map_or(0.0, |rate| amount as f64 / rate);
    let mut timeline = Timeline::default();
    // Seconds at which each unit is free, and at which each region was last written and last read.
    let begin = profile.graph_seconds;
    let mut free = [begin; 4];
    let mut written = [begin; Region::COUNT];
    let mut read = [begin; Region::COUNT];
    timeline.launch += begin;
    for (index, tile) in program.tiles.iter().enumerate() {
        let launch = if tile.launches {
            profile.launch_seconds
        } else {
            0.0
        };
        let work = match tile.lane {
            Lane::Dma | Lane::Store => tile.bytes as f64 / bandwidth,
            Lane::Compute => per(tile.macs, matrix_rate).max(tile.bytes as f64 / bandwidth),
            Lane::Host => per(tile.elements, host_rate).max(tile.bytes as f64 / bandwidth),
        };
        let lane = if profile.overlaps {
            tile.lane as usize
        } else {
            0
        };
        let start = start_of(tile, free[lane], &written, &read);
        let end = start + launch + work;
        free[lane] = end;
        for region in tile.reads.iter() {
            read[region as usize] = read[region as usize].max(end);
        }
        for region in tile.writes.iter() {
            written[region as usize] = written[region as usize].max(end);
        }
        match tile.lane {
            Lane::Dma | Lane::Store => timeline.dma += work,
            Lane::Compute => timeline.compute += work,
            Lane::Host => timeline.host += work,
        }
        timeline.launch += launch;
        timeline.bytes += tile.bytes;
        timeline.macs += tile.macs;
        timeline.seconds = timeline.seconds.max(end);
        if keep_events {
            timeline.events.push(Event {
                tile: index,
                start,
                end,
            });
        }
    }
    timeline
}

fn start_of(
    tile: &Tile,
    free: f64,
    written: &[f64; Region::COUNT],
    read: &[f64; Region::COUNT],
) -> f64 {
    let mut start = free;
    for region in tile.reads.iter() {
        start = start.max(written[region as usize]);
    }
    for region in tile.writes.iter() {
        start = start
            .max(read[region as usize])
            .max(written[region as usize]);
        // Attention and the feed-forward network take turns in one place.
        for &other in shared_place(region) {
            start = start.max(read[other as usize]).max(written[other as usize]);
        }
    }
    start
}

/// Other regions that lie in the same place.
fn shared_place(region: Region) -> &'static [Region] {
    const ATTENTION: [Region; 5] = [
        Region::Query,
        Region::Key,
        Region::Value,
        Region::Mixed,
        Region::Accumulator,
    ];
    const FEED_FORWARD: [Region; 2] = [Region::Inner, Region::Up];
    match region {
        Region::Query | Region::Key | Region::Value | Region::Mixed | Region::Accumulator => {
            &FEED_FORWARD
        }
        Region::Inner | Region::Up => &ATTENTION,
        _ => &[],
    }
}
