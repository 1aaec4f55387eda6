//! A plan as a trace that Perfetto and Chrome show (Trace Event Format, complete events).

use std::io::{self, Write};

use serde::Serialize;
use serde_json::json;

use crate::program::{Lane, Program, Timeline, Work};

/// Writes the steps, each as a process with a thread per unit; times are microseconds.
///
/// # Errors
/// Those of the writer.
pub fn write_trace(
    out: &mut dyn Write,
    device: &str,
    steps: &[(String, Program, Timeline)],
) -> io::Result<()> {
    out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n")?;
    let mut first = true;
    let mut event = |value: serde_json::Value| -> io::Result<()> {
        if !std::mem::take(&mut first) {
            out.write_all(b",\n")?;
        }
        serde_json::to_writer(&mut *out, &value)?;
        Ok(())
    };
    for (process, (name, program, timeline)) in steps.iter().enumerate() {
        let process = process + 1;
        event(json!({
            "ph": "M", "pid": process, "name": "process_name",
            "args": { "name": format!("{device}: {name}") },
        }))?;
        for lane in [Lane::Dma, Lane::Store, Lane::Compute, Lane::Host] {
            event(json!({
                "ph": "M", "pid": process, "tid": thread(lane), "name": "thread_name",
                "args": { "name": lane_name(lane) },
            }))?;
        }
        for timed in &timeline.events {
            let tile = &program.tiles[timed.tile];
            event(serde_json::to_value(Complete {
                ph: "X",
                pid: process,
                tid: thread(tile.lane),
                name: name_of(&tile.work),
                ts: timed.start * 1e6,
                dur: (timed.end - timed.start) * 1e6,
                args: Amounts {
                    bytes: tile.bytes,
                    macs: tile.macs,
                    elements: tile.elements,
                    work: format!("{:?}", tile.work),
                },
            })?)?;
        }
    }
    out.write_all(b"\n]}\n")
}

#[derive(Serialize)]
struct Complete {
    ph: &'static str,
    pid: usize,
    tid: usize,
    name: &'static str,
    ts: f64,
    dur: f64,
    args: Amounts,
}

#[derive(Serialize)]
struct Amounts {
    bytes: u64,
    macs: u64,
    elements: u64,
    work: String,
}

fn thread(lane: Lane) -> usize {
    match lane {
        Lane::Dma => 1,
        Lane::Store => 2,
        Lane::Compute => 3,
        Lane::Host => 4,
    }
}

fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Dma => "DMA in",
        Lane::Store => "DMA out",
        Lane::Compute => "compute",
        Lane::Host => "CPU",
    }
}

fn name_of(work: &Work) -> &'static str {
    match work {
        Work::LoadVector(_) => "norm weights",
        Work::LoadEmbedding { .. } => "embedding row",
        Work::Embed { .. } => "embed",
        Work::Norm { .. } | Work::NormWanted => "norm",
        Work::LoadRows { .. } => "weights",
        Work::Multiply { .. } => "matmul",
        Work::MultiplyGated { .. } => "gated matmul",
        Work::Position(_) => "rotate",
        Work::StoreKeys(_) => "store keys and values",
        Work::BeginAttention { .. } | Work::Attend { .. } | Work::EndAttention { .. } => {
            "attention"
        }
        Work::LoadKeys { .. } => "keys and values",
        Work::HostAttention(_) => "attention",
        Work::Convolve(_) => "convolution",
        Work::Gate(_) => "gate",
        Work::Route(_) => "route",
        Work::AddBranch { .. } => "add",
        Work::StoreLogits { .. } => "store logits",
    }
}
