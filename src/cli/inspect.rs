//! `trimtab inspect`

use std::path::PathBuf;

use serde_json::json;

use super::Done;
use super::memory::readable;
use super::models::Described;
use super::stdout::outln;
use crate::engine::config::{Activation, Norm, Position};
use crate::error::Result;
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
    let (config, tokenizer) = (&model.config, &model.tokenizer);
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
        Activation::SiluGate => "gated SiLU",
    };
    let dtypes = checkpoint.dtypes();
    if args.json {
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
            "window": config.window,
            "vocabulary": config.vocab,
            "tokenizer_entries": tokenizer.len(),
            "bos": tokenizer.bos(),
            "eos": model.eos(),
            "chat_template": tokenizer.chat_template().is_some(),
            "dtypes": dtypes.iter().map(|(name, count)| json!([name, count])).collect::<Vec<_>>(),
            "file_bytes": checkpoint.bytes(),
            "weight_bytes": config.weight_bytes(),
            "kv_bytes_per_token": config.kv_bytes_per_token(),
        });
        outln!("{report}")?;
        return Ok(Done::Well);
    }
    let name = |id: u32| tokenizer.name(id).unwrap_or("?").to_owned();
    let eos: Vec<String> = model.eos().iter().map(|&id| format!("{} ({id})", name(id))).collect();
    let bos = tokenizer.bos().map_or("none".into(), |id| format!("{} ({id})", name(id)));
    let dtypes: Vec<String> =
        dtypes.iter().map(|(name, count)| format!("{count} tensors {name}")).collect();
    let heads = config.heads;
    let per_token = config.kv_bytes_per_token();
    let rows = [
        ("architecture", format!("{} ({norm}, {position}, {activation})", config.architecture)),
        ("parameters", format!("{} ({})", count(checkpoint.parameters()), dtypes.join(", "))),
        (
            "layers",
            format!("{} of width {}, MLP {}", config.layers, config.width, config.feed_forward),
        ),
        (
            "heads",
            format!("{} query, {} key/value, {} channels each", heads.query, heads.kv, heads.dim),
        ),
        (
            "context",
            match config.window {
                Some(window) => format!("{} tokens, each sees the last {window}", config.context),
                None => format!("{} tokens", config.context),
            },
        ),
        ("vocabulary", format!("{} entries, {} in the tokenizer", config.vocab, tokenizer.len())),
        ("begins with", bos),
        ("ends with", if eos.is_empty() { "none".into() } else { eos.join(", ") }),
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
    ];
    for (label, value) in rows {
        outln!("{label:>13}  {value}")?;
    }
    Ok(Done::Well)
}

/// A number of parameters for people.
fn count(number: u64) -> String {
    match number {
        0..1_000_000 => format!("{:.1} K", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", number as f64 / 1e6),
        _ => format!("{:.2} B", number as f64 / 1e9),
    }
}
