//! How a search's cost grows, as a figure: the time per chunk over the chunks already done, beside
//! what it would be if every prefix were run again, and over the number of candidates.

use std::path::Path;
use std::sync::Arc;

use plotters::prelude::*;

use super::bounds::chunks;
use super::machine::{Machine, Measured};
use super::search::{Args, Rig};
use crate::error::{Error, Result};
use crate::kv_cache::Lifetime;
use crate::search::Settings;

/// Chunks of the longest search, if the context has room for them.
const CHUNKS: usize = 24;
/// Chunks after which prefixes are run again.
const RERUNS: usize = 5;
/// Chunks of each search that differ in W·K.
const FEW: usize = 4;
/// W and K of searches that differ in W·K.
const WIDTHS: [(usize, usize); 7] = [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8)];

/// Pixels.
const SIZE: (u32, u32) = (1120, 500);
/// Of the line above both panels.
const HEADING: i32 = 40;
const FONT: &str = "sans-serif";
const BLUE: RGBColor = RGBColor(20, 90, 160);
const RED: RGBColor = RGBColor(190, 60, 40);
const GREY: RGBColor = RGBColor(130, 130, 130);

/// Milliseconds over something.
struct Curve {
    name: &'static str,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

/// One half of the figure.
struct Panel {
    title: String,
    axis: &'static str,
    curves: Vec<Curve>,
}

/// Measures and draws.
pub fn draw<B: Measured>(
    backend: &Arc<B>,
    machine: &Machine,
    args: &Args,
    file: &Path,
) -> Result<()> {
    let (prompt, len) = (args.common.prompt_len, args.chunk_len());
    let count = chunk_count(args)?;
    let few = FEW.min(count);
    let sized = |beam_width, successors, chunks| Settings {
        beam_width,
        successors,
        chunk_len: Some(len),
        max_new_tokens: chunks * len,
        ..args.settings()
    };
    let longest = sized(args.beam_width, args.successors, count);
    let widths = WIDTHS.map(|(w, k)| sized(w, k, few));
    let lives = widths.iter().chain([&longest]).map(Settings::lifetime);
    let life = lives.reduce(larger).expect("there is a longest search");
    let mut rig = Rig::new(backend, args, prompt, life, 1)?;
    let measured = over_chunks(&mut rig, args, &longest)?;
    let bound = bounds(&rig, machine, &longest);
    let over_candidates = Panel {
        title: format!("the first {few} chunks"),
        axis: "candidates, W·K",
        curves: over_candidates(&mut rig, machine, args, &widths)?,
    };
    let name = rig.name().to_owned();
    drop(rig);
    let again = prefixes_again(backend, args, &measured)?;

    let (w, k) = (args.beam_width, args.successors);
    let heading = format!(
        "{name}: chunks of {len} tokens after a prompt of {prompt}; {}",
        backend.describe()
    );
    let over_chunks = Panel {
        title: format!("W = {w}, K = {k}"),
        axis: "chunks done before",
        curves: vec![
            Curve { name: "if every prefix were run again (measured)", color: RED, points: again },
            Curve { name: "measured", color: BLUE, points: measured },
            Curve { name: "this machine's bound", color: GREY, points: bound },
        ],
    };
    paint(file, &heading, [&over_chunks, &over_candidates])
        .map_err(|e| Error::io("write to", file)(std::io::Error::other(e)))?;
    eprintln!("bench plot: {} drawn", file.display());
    Ok(())
}

/// Chunks of the longest search.
fn chunk_count(args: &Args) -> Result<usize> {
    let contexts = args.common.models.sources()?.into_iter().map(|source| source.config.context);
    let room = contexts.min().unwrap_or(0).saturating_sub(args.common.prompt_len);
    Ok(CHUNKS.min(room / args.chunk_len()).max(1))
}

/// What is at least as large as both.
fn larger(a: Lifetime, b: Lifetime) -> Lifetime {
    Lifetime {
        response: a.response.max(b.response),
        chunk: a.chunk.max(b.chunk),
        beams: a.beams.max(b.beams),
        candidates: a.candidates.max(b.candidates),
    }
}

/// A search long enough to see whether later chunks cost more.
fn over_chunks<B: Measured>(
    rig: &mut Rig<B>,
    args: &Args,
    longest: &Settings,
) -> Result<Vec<(f64, f64)>> {
    let runs = args.common.repeated("plot, many chunks", || rig.once(longest, 1))?;
    let count = runs[0].chunks.len();
    let time = |chunk: usize| median(runs.iter().map(|run| run.chunks[chunk]).collect());
    Ok((0..count).map(|chunk| (chunk as f64, time(chunk) * 1e3)).collect())
}

/// The least time of each chunk.
fn bounds<B: Measured>(rig: &Rig<B>, machine: &Machine, settings: &Settings) -> Vec<(f64, f64)> {
    let cost = rig.cost(machine, settings, 1);
    let len = settings.chunk_len.unwrap_or(settings.max_new_tokens);
    let times = chunks(len, settings.max_new_tokens)
        .map(|(done, len)| (cost.expand(done, len) + cost.score(done, len)) * 1e3);
    times.enumerate().map(|(chunk, time)| (chunk as f64, time)).collect()
}

/// A chunk's time and, for each candidate, that of running the prompt and the chunks before it again
/// in all three models: what a search without a cache that forks has to do.
fn prefixes_again<B: Measured>(
    backend: &Arc<B>,
    args: &Args,
    measured: &[(f64, f64)],
) -> Result<Vec<(f64, f64)>> {
    let (last, prompt, len) = (measured.len() - 1, args.common.prompt_len, args.chunk_len());
    let candidates = args.beam_width * args.successors;
    if last == 0 {
        return Ok(Vec::new());
    }
    let settings = Settings {
        beam_width: 1,
        successors: 1,
        chunk_len: Some(1),
        max_new_tokens: 1,
        ..args.settings()
    };
    let longest = prompt + last * len;
    let mut rig = Rig::new(backend, args, longest, settings.lifetime(), candidates)?;
    let mut places: Vec<usize> = (0..RERUNS).map(|i| 1 + (last - 1) * i / (RERUNS - 1)).collect();
    places.dedup();
    places
        .into_iter()
        .map(|chunk| {
            rig.ask(prompt + chunk * len)?;
            let what = format!("plot, the prefixes of chunk {chunk}");
            let runs = args.common.repeated(&what, || rig.once(&settings, candidates))?;
            let again = median(runs.iter().map(|run| run.prefill()).collect());
            let (place, time) = measured[chunk];
            Ok((place, time + again * 1e3))
        })
        .collect()
}

fn over_candidates<B: Measured>(
    rig: &mut Rig<B>,
    machine: &Machine,
    args: &Args,
    widths: &[Settings],
) -> Result<Vec<Curve>> {
    let (mut measured, mut bound) = (Vec::new(), Vec::new());
    for settings in widths {
        let candidates = settings.beam_width * settings.successors;
        let what = format!("plot, {candidates} candidates");
        let runs = args.common.repeated(&what, || rig.once(settings, 1))?;
        let times = runs.into_iter().flat_map(|run| run.chunks).collect();
        measured.push((candidates as f64, median(times) * 1e3));
        let least: Vec<f64> =
            bounds(rig, machine, settings).into_iter().map(|(_, time)| time).collect();
        bound.push((candidates as f64, least.iter().sum::<f64>() / least.len() as f64));
    }
    Ok(vec![
        Curve { name: "measured", color: BLUE, points: measured },
        Curve { name: "this machine's bound", color: GREY, points: bound },
    ])
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    (samples[(samples.len() - 1) / 2] + samples[samples.len() / 2]) / 2.0
}

fn paint(file: &Path, heading: &str, panels: [&Panel; 2]) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let canvas = SVGBackend::new(file, SIZE).into_drawing_area();
    canvas.fill(&WHITE).map_err(|e| text(&e))?;
    let (above, below) = canvas.split_vertically(HEADING);
    above
        .draw(&Text::new(heading.to_owned(), (16, 14), (FONT, 18).into_font()))
        .map_err(|e| text(&e))?;
    for (half, panel) in below.split_evenly((1, 2)).iter().zip(panels) {
        chart(half, panel)?;
    }
    canvas.present().map_err(|e| text(&e))
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel,
) -> Result<(), String> {
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    // Room for the legend.
    let top = points().map(|point| point.1).fold(0.0, f64::max) * 1.3;
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 17))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..right * 1.03, 0.0..top)
        .map_err(|e| text(&e))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(230, 230, 230))
        .x_desc(panel.axis)
        .y_desc("time per chunk, ms")
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.*}", usize::from(top < 20.0)))
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 16))
        .draw()
        .map_err(|e| text(&e))?;
    for Curve { name, color, points } in &panel.curves {
        let color = *color;
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
        let series = chart.draw_series(line.point_size(3)).map_err(|e| text(&e))?;
        series.label(*name).legend(move |(x, y)| {
            PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2))
        });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(TRANSPARENT)
        .label_font((FONT, 15))
        .draw()
        .map_err(|e| text(&e))
}
