//! Results as rows, and rows as text.

use std::path::Path;
use std::time::SystemTime;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::bounds::Work;
use super::machine::Machine;
use crate::cli::line::json_line;
use crate::cli::stdout;
use crate::error::{Error, Result};

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// A Markdown table.
    Md,
    /// One object a line; what `bench compare` reads.
    Json,
    /// With a header.
    Csv,
}

/// Samples from which a percentile is worth stating: for p90, for p99.
const ENOUGH: [usize; 2] = [10, 100];

/// On what and when something was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// The device, as it describes itself.
    pub device: String,
    /// The version of the GPU's driver, where the system says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// As HTTP writes it.
    pub date: String,
}

impl Origin {
    /// Now, on a device that describes itself so.
    pub fn now(device: String) -> Self {
        let version = || std::fs::read_to_string("/sys/module/nvidia/version").ok();
        let driver = device.starts_with("cuda").then(version).flatten();
        let driver = driver.map(|version| version.trim().to_owned());
        Self { device, driver, date: httpdate::fmt_http_date(SystemTime::now()) }
    }

    /// For people, where it matters: the device and its driver.
    pub fn machine(&self) -> String {
        match &self.driver {
            Some(driver) => format!("{}, driver {driver}", self.device),
            None => self.device.clone(),
        }
    }
}

/// One measured quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `decode`, `score`, `search` or `kernels`.
    pub bench: String,
    /// The quantity.
    pub name: String,
    /// What was measured: models and lengths; empty for the machine.
    #[serde(default)]
    pub setting: String,
    /// Sequences that run together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Searches that run together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Of all numbers here but counts and shares: `s`, `B`, `B/s`, `op/s`, `tokens/s`, `pages`, none.
    pub unit: String,
    /// Half of the samples are below.
    pub median: f64,
    /// The lowest sample.
    pub min: f64,
    /// The highest sample.
    pub max: f64,
    /// 90 % of the samples are not above; stated for 10 samples and more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    /// 99 % of the samples are not above; stated for 100 samples and more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// Samples.
    pub n: usize,
    /// What this machine allows; none where there is no saying.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// How near the median comes to the bound; 1 is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_bound: Option<f64>,
    /// The median over the number of chunks, for the parts of a whole search.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_chunk: Option<f64>,
    /// The work that cannot be avoided, where it is one and the same.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// `memory` or `matmul`: the rate from which the bound of such work comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_by: Option<String>,
    /// On what and when.
    #[serde(flatten)]
    pub origin: Origin,
}

impl Row {
    /// A row of at least one sample.
    pub fn new(bench: &str, name: &str, unit: &str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let n = samples.len();
        let percentile = |share: f64, enough: usize| {
            (n >= enough).then(|| samples[((n as f64 * share).ceil() as usize).clamp(1, n) - 1])
        };
        Self {
            bench: bench.into(),
            name: name.into(),
            setting: String::new(),
            batch: None,
            concurrency: None,
            unit: unit.into(),
            median: (samples[(n - 1) / 2] + samples[n / 2]) / 2.0,
            min: samples[0],
            max: samples[n - 1],
            p90: percentile(0.9, ENOUGH[0]),
            p99: percentile(0.99, ENOUGH[1]),
            n,
            bound: None,
            of_bound: None,
            per_chunk: None,
            work: None,
            bound_by: None,
            origin: Origin::default(),
        }
    }

    /// The same with what the machine allows.
    pub fn bound(self, bound: f64) -> Self {
        let of_bound =
            if self.more_is_better() { self.median / bound } else { bound / self.median };
        Self { bound: Some(bound), of_bound: Some(of_bound), ..self }
    }

    /// The same, a time, with the work that it took, and so with the least time for it.
    pub fn worked(self, machine: &Machine, work: Work) -> Self {
        let bound_by = Some(machine.limit(work).to_owned());
        Self { work: Some(work), bound_by, ..self.bound(machine.seconds(work)) }
    }

    /// Rates are better high, times and sizes are better low.
    pub fn more_is_better(&self) -> bool {
        self.unit.ends_with("/s")
    }

    /// What makes it the same quantity in another run.
    pub fn key(&self) -> (&str, &str, &str, Option<usize>, Option<usize>) {
        (&self.bench, &self.name, &self.setting, self.batch, self.concurrency)
    }

    /// The quantity's name with what runs together.
    pub fn title(&self) -> String {
        match (self.batch, self.concurrency) {
            (Some(batch), _) => format!("{} @ {batch}", self.name),
            (None, Some(searches)) => format!("{} @ {searches}", self.name),
            (None, None) => self.name.clone(),
        }
    }
}

/// A number of some unit, for people.
pub fn shown(value: f64, unit: &str) -> String {
    let (factor, unit) = match unit {
        "s" if value < 1e-3 => (1e6, "µs"),
        "s" if value < 1.0 => (1e3, "ms"),
        "B" => (1.0 / (1u64 << 20) as f64, "MiB"),
        "B/s" => (1e-9, "GB/s"),
        "op/s" if value >= 1e12 => (1e-12, "Top/s"),
        "op/s" => (1e-9, "Gop/s"),
        unit => (1.0, unit),
    };
    let value = value * factor;
    let digits = match value.abs() {
        0.0..10.0 if unit != "pages" => 3,
        10.0..100.0 if unit != "pages" => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

const HEADER: [&str; 12] = [
    "what",
    "median",
    "min",
    "max",
    "p90",
    "p99",
    "per chunk",
    "moved",
    "computed",
    "bound",
    "of bound",
    "bound by",
];

/// A row as people read it, under [`HEADER`].
fn cells(row: &Row) -> [String; HEADER.len()] {
    let number = |value: Option<f64>| value.map_or(String::new(), |v| shown(v, &row.unit));
    let rate = |of: fn(&Work) -> f64, unit: &str| match row.work.as_ref().map(of) {
        Some(work) if work > 0.0 => shown(work / row.median, unit),
        _ => String::new(),
    };
    [
        row.title(),
        shown(row.median, &row.unit),
        number(Some(row.min)),
        number(Some(row.max)),
        number(row.p90),
        number(row.p99),
        number(row.per_chunk),
        rate(|work| work.bytes, "B/s"),
        rate(|work| work.operations, "op/s"),
        number(row.bound),
        row.of_bound.map_or(String::new(), |share| format!("{:.0} %", share * 100.0)),
        row.bound_by.clone().unwrap_or_default(),
    ]
}

/// [`HEADER`] and the rows under it, without columns that are empty.
fn filled(rows: &[Row]) -> Vec<Vec<String>> {
    let cells: Vec<_> = rows.iter().map(cells).collect();
    let columns: Vec<usize> = (0..HEADER.len())
        .filter(|&column| cells.iter().any(|cells| !cells[column].is_empty()))
        .collect();
    let of = |cells: &[String]| columns.iter().map(|&column| cells[column].clone()).collect();
    let header = HEADER.map(str::to_owned);
    std::iter::once(&header).chain(&cells).map(|cells| of(cells)).collect()
}

/// All rows on stdout; `origin` heads what people read, and stands in each row of the rest.
pub fn print(rows: &[Row], format: Format, origin: &Origin) -> Result<()> {
    let out = match format {
        Format::Json => json(rows, origin),
        Format::Csv => csv(rows, origin).into_bytes(),
        Format::Md => markdown(rows, origin).into_bytes(),
        Format::Table => table(rows, origin).into_bytes(),
    };
    stdout::write_lines(&out)
}

/// All rows as JSON in a file.
pub fn save(rows: &[Row], file: &Path, origin: &Origin) -> Result<()> {
    std::fs::write(file, json(rows, origin)).map_err(Error::io("write to", file))
}

fn json(rows: &[Row], origin: &Origin) -> Vec<u8> {
    let whole = rows.iter().map(|row| Row { origin: origin.clone(), ..row.clone() });
    whole.flat_map(|row| json_line(&row)).collect()
}

/// Rows in groups of one setting each.
fn groups(rows: &[Row]) -> impl Iterator<Item = &[Row]> {
    rows.chunk_by(|a, b| a.setting == b.setting)
}

fn markdown(rows: &[Row], origin: &Origin) -> String {
    let mut text = format!("On {}, {}.\n", origin.machine(), origin.date);
    for group in groups(rows) {
        text += &format!("\n{}\n\n", heading(group));
        for (index, line) in filled(group).iter().enumerate() {
            text += &format!("| {} |\n", line.join(" | "));
            if index == 0 {
                text += &format!("|{}\n", "---|".repeat(line.len()));
            }
        }
    }
    text
}

fn table(rows: &[Row], origin: &Origin) -> String {
    let mut text = format!("On {}, {}.\n", origin.machine(), origin.date);
    for group in groups(rows) {
        let lines = filled(group);
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<usize> =
            (0..lines[0].len()).map(|column| width(column).unwrap_or(0)).collect();
        text += &format!("\n{}\n", heading(group));
        for line in &lines {
            text += &format!("  {:<1$}", line[0], widths[0]);
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                text += &format!("  {cell:>width$}");
            }
            text.truncate(text.trim_end().len());
            text += "\n";
        }
    }
    text
}

fn heading(group: &[Row]) -> &str {
    match group.first() {
        Some(row) if !row.setting.is_empty() => &row.setting,
        _ => "This machine",
    }
}

fn csv(rows: &[Row], origin: &Origin) -> String {
    let mut text = String::from(
        "bench,setting,name,batch,concurrency,unit,median,min,max,p90,p99,n,bound,of_bound,per_chunk,\
         device,driver,date\n",
    );
    let count = |value: Option<usize>| value.map_or(String::new(), |v| v.to_string());
    let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    for row in rows {
        let fields = [
            row.bench.clone(),
            quoted(&row.setting),
            row.name.clone(),
            count(row.batch),
            count(row.concurrency),
            row.unit.clone(),
            row.median.to_string(),
            row.min.to_string(),
            row.max.to_string(),
            number(row.p90),
            number(row.p99),
            row.n.to_string(),
            number(row.bound),
            number(row.of_bound),
            number(row.per_chunk),
            quoted(&origin.device),
            quoted(origin.driver.as_deref().unwrap_or_default()),
            quoted(&origin.date),
        ];
        text += &format!("{}\n", fields.join(","));
    }
    text
}
