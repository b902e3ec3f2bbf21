//! Published models' shapes, as their `config.json` states them.

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::engine::Config;
use crate::error::Result;

/// `--shape`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// 124 million parameters.
    #[value(name = "gpt2")]
    Gpt2,
    /// 355 million.
    #[value(name = "gpt2-medium")]
    Gpt2Medium,
    /// 774 million.
    #[value(name = "gpt2-large")]
    Gpt2Large,
    /// 1.6 billion.
    #[value(name = "gpt2-xl")]
    Gpt2Xl,
    /// 1.1 billion.
    #[value(name = "tinyllama")]
    TinyLlama,
    /// Llama 3.2 of 1.2 billion.
    #[value(name = "llama-1b")]
    Llama1b,
    /// Llama 3.2 of 3.2 billion.
    #[value(name = "llama-3b")]
    Llama3b,
    /// Llama 3.1 of 8 billion.
    #[value(name = "llama-8b")]
    Llama8b,
    /// Mistral of 7 billion.
    #[value(name = "mistral-7b")]
    Mistral7b,
}

impl Shape {
    /// As it is written in the flag.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Gpt2Medium => "gpt2-medium",
            Self::Gpt2Large => "gpt2-large",
            Self::Gpt2Xl => "gpt2-xl",
            Self::TinyLlama => "tinyllama",
            Self::Llama1b => "llama-1b",
            Self::Llama3b => "llama-3b",
            Self::Llama8b => "llama-8b",
            Self::Mistral7b => "mistral-7b",
        }
    }

    /// The model's description.
    pub fn config(self) -> Result<Config> {
        let json = match self {
            Self::Gpt2 => gpt2(768, 12, 12),
            Self::Gpt2Medium => gpt2(1024, 24, 16),
            Self::Gpt2Large => gpt2(1280, 36, 20),
            Self::Gpt2Xl => gpt2(1600, 48, 25),
            Self::TinyLlama => llama([2048, 5632, 22, 32, 4], 32_000, 2048, 1e4, false),
            Self::Llama1b => llama([2048, 8192, 16, 32, 8], 128_256, 131_072, 5e5, true),
            Self::Llama3b => llama([3072, 8192, 28, 24, 8], 128_256, 131_072, 5e5, true),
            Self::Llama8b => llama([4096, 14_336, 32, 32, 8], 128_256, 131_072, 5e5, false),
            Self::Mistral7b => json!({
                "architectures": ["MistralForCausalLM"],
                "vocab_size": 32_000,
                "hidden_size": 4096,
                "intermediate_size": 14_336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 32_768,
                "sliding_window": 4096,
            }),
        };
        Config::parse(self.name(), &json.to_string())
    }
}

fn gpt2(width: usize, layers: usize, heads: usize) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
    })
}

/// `[width, feed_forward, layers, query heads, key/value heads]`; head_dim is 64 or 128.
fn llama(sizes: [usize; 5], vocab: usize, context: usize, theta: f64, tied: bool) -> Value {
    let [width, feed_forward, layers, query, kv] = sizes;
    json!({
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": query,
        "num_key_value_heads": kv,
        "max_position_embeddings": context,
        "rope_theta": theta,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
    })
}
