//! Flags that say where the base model is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::models::{self, Described, Plan, Reading};
use crate::error::{Error, Result};
use crate::proposer::{ApiKey, Endpoint, RemoteFormat, RemoteProposer};
use crate::server::say;
use crate::text::{Template, Tokenizer};

/// Before a request is sent again for the first time.
const BACKOFF: Duration = Duration::from_millis(250);
/// Requests at the same time at most: each has a thread.
const MAX_REQUESTS: usize = 1024;

/// `--base-prompt`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BasePromptFlag {
    /// Text, tokenised by the server.
    Text,
    /// Tokens, as --base-tokenizer makes them.
    Ids,
}

/// The base model: a folder, or a server.
#[derive(clap::Args, Clone, Debug)]
pub struct BaseArgs {
    /// Folder of the base model, in Hugging Face format
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// A server that writes in the base model's place: the root of an OpenAI-compatible API with
    /// /completions, such as http://127.0.0.1:8000/v1
    #[arg(long, value_name = "URL", conflicts_with = "base", requires = "base_model")]
    pub base_url: Option<String>,
    /// The base model's name on that server
    #[arg(long, value_name = "NAME", requires = "base_url", conflicts_with = "base")]
    pub base_model: Option<String>,
    /// The environment variable that holds the server's API key
    #[arg(long, value_name = "VAR", requires = "base_url", conflicts_with = "base")]
    pub api_key_env: Option<String>,
    /// Folder of the base model's tokenizer, for --chat and --base-prompt ids
    #[arg(long, value_name = "DIR", requires = "base_url", conflicts_with = "base")]
    pub base_tokenizer: Option<PathBuf>,
    /// How the server gets prompts [default: text]
    #[arg(long, value_enum, requires = "base_url", conflicts_with = "base")]
    pub base_prompt: Option<BasePromptFlag>,
    /// A request to the server may take this long [default: 120]
    #[arg(long, value_name = "SECONDS", requires = "base_url", conflicts_with = "base")]
    pub base_timeout: Option<u64>,
    /// How often a request that failed is sent again [default: 8, within a minute]
    #[arg(long, value_name = "N", requires = "base_url", conflicts_with = "base")]
    pub base_retries: Option<u32>,
    /// Requests to the server at the same time [default: 32]
    #[arg(long, value_name = "N", requires = "base_url", conflicts_with = "base")]
    pub base_requests: Option<usize>,
    /// Choices (n) that one request asks for at most [default: as many as it takes]
    #[arg(long, value_name = "N", requires = "base_url", conflicts_with = "base")]
    pub base_choices: Option<usize>,
}

/// Where the base model is.
#[derive(Clone, Debug)]
pub enum Base {
    /// In a folder.
    Folder(PathBuf),
    /// On a server.
    Server(Server),
}

/// A base model on a server.
#[derive(Clone, Debug)]
pub struct Server {
    pub endpoint: Endpoint,
    /// The folder of its tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// Whether it is prompted with tokens.
    pub ids: bool,
}

impl Server {
    /// The proposer that asks it.
    pub fn proposer(&self, template: &Template, reading: &Reading) -> Result<RemoteProposer> {
        let template = template.clone();
        let format = match &self.tokenizer {
            Some(folder) => {
                let tokenizer = Arc::new(Tokenizer::open(folder)?);
                if reading.chat {
                    tokenizer.require_chat_template()?;
                }
                let format = reading.format(tokenizer, template);
                RemoteFormat::Model { format, ids: self.ids }
            }
            None if reading.chat => {
                let reason = "with --base-url needs --base-tokenizer, the folder of the base \
                              model's own chat template";
                return Err(Error::flag("--chat", reason));
            }
            None => RemoteFormat::Template(template),
        };
        RemoteProposer::new(self.endpoint.clone(), format)
    }
}

impl BaseArgs {
    /// The base model's name: on its server, or its folder's.
    pub fn name(&self) -> String {
        let folder = self.base.as_ref().map(|folder| {
            let whole = folder.canonicalize().unwrap_or_else(|_| folder.clone());
            whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned()
        });
        folder.or_else(|| self.base_model.clone()).unwrap_or_default()
    }

    /// What the flags say; the API key is read here.
    pub fn base(&self) -> Result<Base> {
        let (url, model) = match (&self.base, &self.base_url, &self.base_model) {
            (Some(folder), ..) => return Ok(Base::Folder(folder.clone())),
            (None, Some(url), Some(model)) => (url.clone(), model.clone()),
            _ => return Err(Error::flag("--base", "or --base-url and --base-model are needed")),
        };
        let ids = self.base_prompt == Some(BasePromptFlag::Ids);
        if ids && self.base_tokenizer.is_none() {
            return Err(Error::flag("--base-prompt", "ids needs --base-tokenizer"));
        }
        let timeout = self.base_timeout.unwrap_or(120);
        if !(1..=86400).contains(&timeout) {
            return Err(Error::flag("--base-timeout", "must be from 1 second to a day, 86400"));
        }
        let requests = self.base_requests.unwrap_or(32);
        if !(1..=MAX_REQUESTS).contains(&requests) {
            let reason = format!("must be at least 1 and at most {MAX_REQUESTS}");
            return Err(Error::flag("--base-requests", reason));
        }
        if self.base_choices == Some(0) {
            return Err(Error::flag("--base-choices", "must be at least 1"));
        }
        let key = self.api_key_env.as_deref();
        let endpoint = Endpoint {
            url,
            model,
            key: key.map(|name| ApiKey::from_env("--api-key-env", name)).transpose()?,
            timeout: Duration::from_secs(timeout),
            retries: self.base_retries.unwrap_or(8),
            backoff: BACKOFF,
            requests,
            choices: self.base_choices.unwrap_or(usize::MAX),
            trouble: |error| say(error),
        };
        Ok(Base::Server(Server { endpoint, tokenizer: self.base_tokenizer.clone(), ids }))
    }

    /// What of it determines an answer. Never the key.
    pub fn fingerprint(&self) -> Result<Value> {
        Ok(match &self.base {
            Some(folder) => json!({ "fingerprint": models::fingerprint(folder)? }),
            None => json!({
                "url": self.base_url,
                "model": self.base_model,
                "tokenizer": self.base_tokenizer,
                "ids": self.base_prompt == Some(BasePromptFlag::Ids),
                // It decides which candidates share a request and its seed.
                "choices": self.base_choices,
            }),
        })
    }
}

/// A base model whose weights have not been loaded, if they are to be.
pub enum DescribedBase {
    Folder(Box<Described>),
    Server(Box<RemoteProposer>),
}

impl DescribedBase {
    pub fn open(plan: &Plan, reading: &Reading) -> Result<Self> {
        let server = match &plan.base {
            Base::Folder(folder) => {
                return Ok(Self::Folder(Box::new(Described::open(folder)?.warned())));
            }
            Base::Server(server) => server,
        };
        if plan.guidance.is_some() {
            let reason = "eft shifts the base model's logits, which a server (--base-url) keeps to \
                          itself; cbs and bon need only its text";
            return Err(Error::flag("--method", reason));
        }
        if plan.compat {
            let reason = "reference needs the base model's tokens, which a server (--base-url) \
                          keeps to itself";
            return Err(Error::flag("--compat", reason));
        }
        Ok(Self::Server(Box::new(server.proposer(&plan.base_template, reading)?)))
    }

    pub fn folder(&self) -> Option<&Described> {
        match self {
            Self::Folder(described) => Some(described),
            Self::Server(_) => None,
        }
    }
}
