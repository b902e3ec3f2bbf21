//! How a search's cost grows, as a figure: the time per chunk over the chunks already done, and
//! over the number of candidates.

use std::path::Path;
use std::sync::Arc;

use plotters::prelude::*;

use super::bounds::chunks;
use super::machine::Machine;
use super::search::{Args, Rig};
use crate::backend::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::search::Settings;

/// Chunks of the longest search, if the context has room for them.
const CHUNKS: usize = 24;
/// W and K of searches that differ in W·K.
const WIDTHS: [(usize, usize); 6] = [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)];
/// Pixels.
const SIZE: (u32, u32) = (960, 380);

/// Measured and least times, in milliseconds, over something.
struct Curve {
    measured: Vec<(f64, f64)>,
    bound: Vec<(f64, f64)>,
}

/// Measures and draws.
pub fn draw(cpu: &Arc<CpuBackend>, machine: &Machine, args: &Args, file: &Path) -> Result<()> {
    let over_chunks = over_chunks(cpu, machine, args)?;
    let over_candidates = over_candidates(cpu, machine, args)?;
    let (w, k, l) = (args.beam_width, args.successors, args.chunk_len());
    let titles = [
        (format!("Time per chunk of {l} tokens, W·K = {}", w * k), "chunks done before"),
        (format!("Time per chunk of {l} tokens"), "candidates, W·K"),
    ];
    let canvas = SVGBackend::new(file, SIZE).into_drawing_area();
    let panels = canvas.split_evenly((1, 2));
    let drawn = canvas.fill(&WHITE).map_err(|e| e.to_string()).and_then(|()| {
        for ((panel, curve), (title, axis)) in
            panels.iter().zip([&over_chunks, &over_candidates]).zip(&titles)
        {
            chart(panel, curve, title, axis)?;
        }
        canvas.present().map_err(|e| e.to_string())
    });
    drawn.map_err(|e| Error::io("write to", file)(std::io::Error::other(e)))?;
    eprintln!("bench plot: {} drawn", file.display());
    Ok(())
}

/// A search long enough to see whether later chunks cost more.
fn over_chunks(cpu: &Arc<CpuBackend>, machine: &Machine, args: &Args) -> Result<Curve> {
    let len = args.chunk_len();
    let contexts = args.common.models.sources()?.into_iter().map(|source| source.config.context);
    let room = contexts.min().unwrap_or(0).saturating_sub(args.common.prompt_len);
    let count = CHUNKS.min(room / len).max(1);
    let settings = Settings { max_new_tokens: count * len, ..args.settings() };
    let mut rig = Rig::new(cpu, args, settings, 1)?;
    let runs = args.common.repeated("plot, many chunks", || rig.once(1))?;
    let cost = rig.cost(machine, 1);
    let median = |chunk: usize| median(runs.iter().map(|run| run.chunks[chunk]).collect());
    Ok(Curve {
        measured: (0..count).map(|chunk| (chunk as f64, median(chunk) * 1e3)).collect(),
        bound: chunks(len, count * len)
            .enumerate()
            .map(|(chunk, (done, len))| {
                (chunk as f64, (cost.expand(done, len) + cost.score(done, len)) * 1e3)
            })
            .collect(),
    })
}

fn over_candidates(cpu: &Arc<CpuBackend>, machine: &Machine, args: &Args) -> Result<Curve> {
    let len = args.chunk_len();
    let mut curve = Curve { measured: Vec::new(), bound: Vec::new() };
    for (beam_width, successors) in WIDTHS {
        let max_new_tokens = 4 * len;
        let settings = Settings { beam_width, successors, max_new_tokens, ..args.settings() };
        let mut rig = Rig::new(cpu, args, settings, 1)?;
        let candidates = beam_width * successors;
        let what = format!("plot, {candidates} candidates");
        let runs = args.common.repeated(&what, || rig.once(1))?;
        let cost = rig.cost(machine, 1);
        let times = runs.into_iter().flat_map(|run| run.chunks).collect();
        let bounds = chunks(len, max_new_tokens)
            .map(|(done, len)| cost.expand(done, len) + cost.score(done, len))
            .collect::<Vec<f64>>();
        let bound = bounds.iter().sum::<f64>() / bounds.len() as f64;
        curve.measured.push((candidates as f64, median(times) * 1e3));
        curve.bound.push((candidates as f64, bound * 1e3));
    }
    Ok(curve)
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    (samples[(samples.len() - 1) / 2] + samples[samples.len() / 2]) / 2.0
}

fn chart(
    panel: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    curve: &Curve,
    title: &str,
    axis: &str,
) -> Result<(), String> {
    let points = || curve.measured.iter().chain(&curve.bound);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max) * 1.15;
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let mut chart = ChartBuilder::on(panel)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right * 1.02, 0.0..top)
        .map_err(|e| text(&e))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc(axis)
        .y_desc("milliseconds")
        .label_style(("sans-serif", 14))
        .draw()
        .map_err(|e| text(&e))?;
    for (name, color, values) in [
        ("measured", RGBColor(20, 90, 160), &curve.measured),
        ("this machine's bound", RGBColor(150, 150, 150), &curve.bound),
    ] {
        let line = LineSeries::new(values.iter().copied(), color.stroke_width(2)).point_size(3);
        let series = chart.draw_series(line).map_err(|e| text(&e))?;
        series.label(name).legend(move |(x, y)| {
            PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2))
        });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 14))
        .draw()
        .map_err(|e| text(&e))
}
