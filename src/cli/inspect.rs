//! `trimtab inspect`

use std::path::PathBuf;

use serde_json::json;

use super::Done;
use super::memory::readable;
use super::models::Described;
use super::stdout::outln;
use crate::engine::config::{Activation, Config, Norm, Position};
use crate::error::Result;
use crate::text::shown;
use crate::weights::Checkpoint;

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// A model's folder, in Hugging Face format
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<Done> {
    let model = Described::open(&args.folder)?;
    let checkpoint = Checkpoint::open(&args.folder)?;
    if args.json { print_json(&model, &checkpoint) } else { print_rows(&model, &checkpoint) }
}

fn print_json(model: &Described, checkpoint: &Checkpoint) -> Result<Done> {
    let (config, tokenizer) = (&model.config, &model.tokenizer);
    let dtypes = checkpoint.dtypes();
    let dtypes = dtypes.iter().map(|(name, count)| json!([name, count])).collect::<Vec<_>>();
    let ends = model
        .ends
        .iter()
        .map(|end| json!({"id": end.id, "token": tokenizer.name(end.id), "sources": end.sources}));
    // One number where all layers are alike, as they are in most models.
    let windows: Vec<Option<usize>> = config.attention.iter().map(|layer| layer.window).collect();
    let alike = windows.windows(2).all(|pair| pair[0] == pair[1]);
    let report = json!({
        "architecture": config.architecture,
        "parameters": checkpoint.parameters(),
        "layers": config.layers,
        "width": config.width,
        "feed_forward": config.feed_forward,
        "query_heads": config.heads.query,
        "kv_heads": config.heads.kv,
        "head_dim": config.heads.dim,
        "context": config.context,
        "window": if alike { json!(windows.first().copied().flatten()) } else { json!(windows) },
        "tied_head": config.tied_head,
        "vocabulary": config.vocab,
        "tokenizer_entries": tokenizer.len(),
        "bos": tokenizer.bos(),
        "front": tokenizer.front(),
        "eos": model.eos(),
        "end_tokens": ends.collect::<Vec<_>>(),
        "chat_template": tokenizer.chat_template().is_some(),
        "dtypes": dtypes,
        "file_bytes": checkpoint.bytes(),
        "weight_bytes": config.weight_bytes(),
        "kv_bytes_per_token": config.kv_bytes_per_token(),
        "warnings": model.notes.warnings,
        "remarks": model.notes.remarks,
    });
    outln!("{report}")?;
    Ok(Done::Well)
}

fn print_rows(model: &Described, checkpoint: &Checkpoint) -> Result<Done> {
    let (config, tokenizer) = (&model.config, &model.tokenizer);
    let name = |id: u32| tokenizer.name(id).unwrap_or("?").to_owned();
    let ends: Vec<String> = model.ends.iter().map(|end| model.shown(end)).collect();
    let token = |id: u32| format!("{} ({id})", name(id));
    let bos = tokenizer.bos().map_or("none".into(), token);
    let front: Vec<String> = tokenizer.front().iter().map(|&id| token(id)).collect();
    let front = if front.is_empty() { "nothing".into() } else { front.join(" ") };
    let dtypes = checkpoint.dtypes();
    let dtypes: Vec<String> =
        dtypes.iter().map(|(name, count)| format!("{count} tensors {name}")).collect();
    let (heads, per_token) = (config.heads, config.kv_bytes_per_token());
    let head = if config.tied_head { "the embedding table" } else { "a matrix of its own" };
    let mut rows = vec![
        ("architecture", format!("{} ({})", config.architecture, kinds(config))),
        ("parameters", format!("{} ({})", count(checkpoint.parameters()), dtypes.join(", "))),
        (
            "layers",
            format!("{} of width {}, MLP {}", config.layers, config.width, config.feed_forward),
        ),
        (
            "heads",
            format!("{} query, {} key/value, {} channels each", heads.query, heads.kv, heads.dim),
        ),
        ("context", context(config)),
        ("vocabulary", format!("{} entries, {} in the tokenizer", config.vocab, tokenizer.len())),
        ("LM head", head.into()),
        ("BOS token", bos),
        ("before text", front),
    ];
    // One row each; the first has the label.
    let labels = std::iter::once("ends with").chain(std::iter::repeat(""));
    let ends = if ends.is_empty() { vec!["none".into()] } else { ends };
    rows.extend(labels.zip(ends));
    rows.extend([
        ("chat template", if tokenizer.chat_template().is_some() { "yes" } else { "no" }.into()),
        ("files", readable(checkpoint.bytes() as usize)),
        (
            "in memory",
            format!(
                "{} of weights in bf16, {} of keys and values per cached token ({} for a full context)",
                readable(config.weight_bytes()),
                readable(per_token),
                readable(per_token * config.context)
            ),
        ),
    ]);
    rows.extend(model.notes.remarks.iter().map(|remark| ("note", remark.clone())));
    rows.extend(model.notes.warnings.iter().map(|warning| ("warning", warning.clone())));
    for (label, value) in rows {
        // One line each, whatever a file calls its tokens.
        outln!("{label:>13}  {}", shown(&value).replace('\n', "\\n"))?;
    }
    Ok(Done::Well)
}

/// The norm, the positions and the activation.
fn kinds(config: &Config) -> String {
    let norm = match config.norm {
        Norm::Layer(_) => "layer norm",
        Norm::Rms(_) => "RMS norm",
    };
    let position = match config.position {
        Position::Learned => "learned positions",
        Position::Rotary(_) => "rotary positions",
    };
    let activation = match config.activation {
        Activation::Gelu => "GELU",
        Activation::GeluErf => "exact GELU",
        Activation::SiluGate => "gated SiLU",
    };
    format!("{norm}, {position}, {activation}")
}

/// How far the model sees.
fn context(config: &Config) -> String {
    let context = config.context;
    let sliding: Vec<usize> = config.attention.iter().filter_map(|layer| layer.window).collect();
    match sliding.first() {
        None => format!("{context} tokens"),
        Some(window) if sliding.len() == config.layers => {
            format!("{context} tokens, each sees the last {window}")
        }
        Some(window) => format!(
            "{context} tokens, each sees the last {window} in {} of {} layers",
            sliding.len(),
            config.layers
        ),
    }
}

/// A number of parameters for people.
fn count(number: u64) -> String {
    match number {
        0..1_000_000 => format!("{:.1} K", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", number as f64 / 1e6),
        _ => format!("{:.2} B", number as f64 / 1e9),
    }
}
