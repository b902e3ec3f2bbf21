//! Rotary positions (Su et al., arXiv 2104.09864) and the ways in which they are stretched, as
//! `config.json` names them.

use std::f32::consts::PI;

use serde_json::Value;

use super::config::{limits, unsupported};
use super::fields::ROPE_TABLE;
use crate::error::Result;
use crate::folder::{JsonFile, Notes};

/// How a head's channels turn with the position.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// `[head_dim / 2]`: radians per position of each channel pair, in f32 as transformers computes them.
    pub frequencies: Vec<f32>,
    /// Factor on cosines and sines; not 1 for YaRN alone.
    pub scale: f32,
}

/// The base of the frequencies where no field names one.
const DEFAULT_THETA: f64 = 10_000.0;

/// Reads the rotary positions of a `config.json` for heads of `dim` channels in a model that was trained
/// on `context` positions.
///
/// Old configs have `rope_theta` and `rope_scaling`, new ones put both into `rope_parameters`. A config that
/// has both was edited by hand: then `rope_scaling` counts, as it does for every version of transformers.
///
/// # Errors
/// [`crate::error::Error::Config`] for kinds that are not supported, and where fields contradict each other.
pub fn rotary(file: &JsonFile, dim: usize, context: usize, notes: &mut Notes) -> Result<Rotary> {
    let new = file.nested("rope_parameters")?.filter(|rope| rope.entries().next().is_some());
    let old = file.nested("rope_scaling")?.filter(|rope| rope.entries().next().is_some());
    for rope in new.iter().chain(&old) {
        notes.warnings.extend(ROPE_TABLE.check(rope)?);
    }
    let rope = match (new, old) {
        (Some(new), Some(old)) => {
            if let Some(warning) = overridden(&new, &old)? {
                notes.warn(format!("{}: {warning}", file.path().display()));
            }
            old
        }
        (None, Some(rope)) | (Some(rope), None) => rope,
        (None, None) => JsonFile::empty(file.path().into()),
    };
    let theta = theta(file, &rope)?;
    let plain: Vec<f32> =
        (0..dim / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / dim as f32)).collect();
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let unscaled = |frequencies| Rotary { frequencies, scale: 1.0 };
    Ok(match kind {
        // Dynamic scaling begins behind the positions that the model was trained on, which is where its
        // context ends here.
        "default" | "dynamic" => unscaled(plain),
        "linear" => {
            let factor = rope.positive("factor", None)? as f32;
            unscaled(plain.into_iter().map(|frequency| frequency / factor).collect())
        }
        "llama3" => unscaled(llama3(&rope, plain, original_context(file, &rope, context)? as f32)?),
        "yarn" => {
            let original = original_context(file, &rope, context)?;
            yarn(&rope, plain, theta, original, context)?
        }
        other => {
            let supported = "default, linear, dynamic, llama3, yarn";
            return Err(unsupported(&rope, "rope_type", other, supported));
        }
    })
}

/// What `rope_scaling` overrides in `rope_parameters`, for a warning.
fn overridden(new: &JsonFile, old: &JsonFile) -> Result<Option<String>> {
    if let (Some(theta), None) = (new.get("rope_theta"), old.get("rope_theta"))
        && theta.as_f64() != Some(DEFAULT_THETA)
    {
        let reason = format!(
            "counts where `rope_parameters` is there too, and it lacks the `rope_theta` {theta} of the \
             latter; remove one of the two"
        );
        return Err(new.error("rope_scaling", reason));
    }
    let differs = |name: &str| new.get(name) != old.get(name);
    let names = ["rope_type", "rope_theta", "factor"];
    Ok(names.iter().any(|name| differs(name)).then(|| {
        "`rope_scaling` counts, as for transformers, and `rope_parameters`, which says otherwise, does not; \
         remove one of the two"
            .to_owned()
    }))
}

/// The base of the frequencies: inside the parameters, or at the top.
fn theta(file: &JsonFile, rope: &JsonFile) -> Result<f64> {
    let (inside, top) = (rope.get("rope_theta"), file.get("rope_theta"));
    match (inside.and_then(Value::as_f64), top.and_then(Value::as_f64)) {
        (Some(inside), Some(top)) if inside != top => {
            let reason = format!(
                "is {top}, but {inside} inside the rope parameters; versions of transformers differ in \
                 which counts, so remove the wrong one"
            );
            Err(file.error("rope_theta", reason))
        }
        _ if inside.is_some() => rope.positive("rope_theta", None),
        _ => file.positive("rope_theta", Some(DEFAULT_THETA)),
    }
}

/// The positions that the model was trained on before it was stretched. The field at the top counts before
/// the one inside, as for transformers; without either there was no such training.
fn original_context(file: &JsonFile, rope: &JsonFile, context: usize) -> Result<usize> {
    const NAME: &str = "original_max_position_embeddings";
    match file.get(NAME) {
        Some(_) => file.size(NAME, limits::CONTEXT),
        None => rope.size_or(NAME, limits::CONTEXT, Some(context)),
    }
}

/// Llama 3.1's scaling: short waves stay, long ones are stretched by `factor`, those between are
/// interpolated (Llama 3 herd of models, arXiv 2407.21783, and its reference code).
fn llama3(rope: &JsonFile, plain: Vec<f32>, context: f32) -> Result<Vec<f32>> {
    let factor = rope.positive("factor", None)? as f32;
    let low = rope.positive("low_freq_factor", None)? as f32;
    let high = rope.positive("high_freq_factor", None)? as f32;
    if high <= low {
        return Err(rope.error("high_freq_factor", "must be larger than low_freq_factor"));
    }
    let stretched = |frequency: f32| {
        let wave_length = 2.0 * PI / frequency;
        if wave_length < context / high {
            frequency
        } else if wave_length > context / low {
            frequency / factor
        } else {
            let smooth = (context / wave_length - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    };
    Ok(plain.into_iter().map(stretched).collect())
}

/// YaRN (Peng et al., arXiv 2309.00071): channel pairs that turn often within the original context stay,
/// those that turn seldom are stretched by `factor`, and a ramp joins the two. Cosines and sines are scaled
/// so that attention's logits stay as sharp as before.
fn yarn(
    rope: &JsonFile,
    plain: Vec<f32>,
    theta: f64,
    original: usize,
    context: usize,
) -> Result<Rotary> {
    let pairs = plain.len();
    let dim = (2 * pairs) as f64;
    let factor = rope.positive("factor", Some(context as f64 / original as f64))?;
    let optional = |name| rope.get(name).map(|_| rope.positive(name, None)).transpose();
    let sharpened =
        |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let scale = match optional("attention_factor")? {
        Some(scale) => scale,
        None => match (optional("mscale")?, optional("mscale_all_dim")?) {
            (Some(scale), Some(all)) => sharpened(scale) / sharpened(all),
            _ => sharpened(1.0),
        },
    };
    // The pair that turns so often within the original context.
    let pair_of = |turns: f64| {
        dim * (original as f64 / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
    };
    let mut first = pair_of(rope.positive("beta_fast", Some(32.0))?);
    let mut last = pair_of(rope.positive("beta_slow", Some(1.0))?);
    if rope.flag("truncate", true)? {
        (first, last) = (first.floor(), last.ceil());
    }
    let (first, mut last) = (first.max(0.0), last.min(dim - 1.0));
    if first == last {
        last += 0.001;
    }
    let stretched = |(pair, frequency): (usize, f32)| {
        let ramp = ((pair as f32 - first as f32) / (last - first) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        frequency / factor as f32 * (1.0 - kept) + frequency * kept
    };
    let frequencies = plain.into_iter().enumerate().map(stretched).collect();
    Ok(Rotary { frequencies, scale: scale as f32 })
}
