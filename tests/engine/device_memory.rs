//! The budget of device memory: how much an engine takes is known before it is built, it is enough
//! to the byte, and nothing is taken afterwards. And what a device refuses is named.

use std::sync::{Arc, Mutex};

use super::{folder, gpu};
use trimtab::backend::cpu::{CpuBackend, Isa};
use trimtab::backend::cuda::{CudaBackend, Device, Emulator, Launcher, Step, TileShape};
use trimtab::backend::{Backend, Heads, PoolShape, Room};
use trimtab::engine::{Config, Engine, Limits, Model, ModelFiles, Pair};
use trimtab::error::{Error, Result};
use trimtab::guide::{GuideTokens, PairGuide, WeightedPair};
use trimtab::proposer::{Guidance, LocalProposer, Prompt, Sampling};
use trimtab::scheduler::Scheduler;
use trimtab::search::Settings;
use trimtab::text::{Bos, PromptFormat, StopStrings, Template, Tokenizer};

fn load<B: Backend>(backend: &Arc<B>, name: &str, twin: Option<&Model<B>>) -> Model<B> {
    Model::open(&**backend, &folder(name), twin).unwrap()
}

/// Runs a check on every kind of backend; the block names what it is given.
macro_rules! on_every_backend {
    (|$backend:ident| $body:block) => {{
        let $backend = Arc::new(CpuBackend::new(Some(1)).unwrap());
        $body
        let $backend = Arc::new(CudaBackend::emulated(1).unwrap());
        $body
        if let Some($backend) = gpu() {
            $body
        }
    }};
}

/// Goal: what weights take is known to the byte, however an instruction set has its matrices laid out.
#[test]
fn what_a_model_takes_is_known_before() {
    for isa in Isa::available() {
        let backend = Arc::new(CpuBackend::with_isa(isa, Some(1)).unwrap());
        for name in ["gpt2", "llama", "llama3", "mistral"] {
            let before = backend.memory().taken();
            let model = load(&backend, name, None);
            let taken = backend.memory().taken() - before;
            assert_eq!(taken, Model::bytes(&*backend, &model.config), "{name}, {isa:?}");
        }
    }
}

/// Goal: `Model::bytes`, `Engine::bytes` and `Pair::bytes` say to the byte what is taken, for every family,
/// caches shorter and longer than the context, and all of it is given back.
#[test]
fn what_an_engine_takes_is_known_before() {
    on_every_backend!(|backend| {
        let before = backend.memory().taken();
        for name in ["gpt2", "llama", "llama3", "mistral"] {
            for (pages, rows, logit_rows) in [(1, 1, 1), (3, 16, 5), (40, 33, 32)] {
                let limits = Limits { pages, rows, logit_rows };
                let model = load(&backend, name, None);
                let config = ModelFiles::open(&folder(name)).unwrap().config;
                let (weights, bytes) =
                    (backend.memory().taken(), Engine::bytes(&*backend, &config, limits));
                assert_eq!(weights - before, Model::bytes(&*backend, &config), "{name}");
                let engine = Engine::new(backend.clone(), model, limits).unwrap();
                assert_eq!(backend.memory().taken() - weights, bytes, "{name}, {limits:?}");
                drop(engine);
                assert_eq!(backend.memory().taken(), before, "{name}: all is given back");
            }
        }
        let limits = Limits { pages: 5, rows: 16, logit_rows: 3 };
        let tuned = load(&backend, "llama_tuned", None);
        let untuned = load(&backend, "llama", Some(&tuned));
        let bytes = Pair::bytes(&*backend, [&tuned.config, &untuned.config], limits);
        let weights = backend.memory().taken();
        let pair = Pair::new(&backend, tuned, untuned, limits, 2).unwrap();
        assert_eq!(backend.memory().taken() - weights, bytes);
        drop(pair);
        assert_eq!(backend.memory().taken(), before);
    });
}

/// Goal: a budget of exactly what is needed does, one byte less is an error with all numbers, and
/// after it everything is as before.
#[test]
fn a_budget_that_is_just_enough_is_enough() {
    on_every_backend!(|backend| {
        let limits = Limits { pages: 4, rows: 8, logit_rows: 2 };
        let memory = backend.memory();
        let before = memory.taken();
        let build = || Engine::new(backend.clone(), load(&backend, "gpt2", None), limits);
        let needed = {
            let _engine = build().unwrap();
            memory.taken()
        };
        memory.limit_to(needed).unwrap();
        drop(build().unwrap());
        memory.limit_to(needed - 1).unwrap();
        let error = build().err().expect("one byte is missing");
        let Error::DeviceBudget { bytes, taken, limit, .. } = error else { panic!("{error}") };
        assert_eq!((taken + bytes, limit), (needed, needed - 1));
        let text = error.to_string();
        assert!(text.contains(&format!("--device-memory to at least {needed}")), "{text}");
        assert_eq!(memory.taken(), before);
        memory.limit_to(needed).unwrap();
        drop(build().unwrap());
    });
}

/// A search that is steered and scored by the same pair.
fn search<B: Backend>(backend: &Arc<B>) {
    let limits = Limits { pages: 64, rows: 32, logit_rows: 8 };
    let tokenizer = Arc::new(Tokenizer::open(&folder("gpt2")).unwrap());
    let longest_token = tokenizer.longest_token();
    let eos = tokenizer.eos();
    let format = PromptFormat {
        tokenizer,
        template: Template::default(),
        chat: false,
        system: None,
        date: None,
        bos: Bos::Never,
    };
    let tuned = load(backend, "gpt2_tuned", None);
    let untuned = load(backend, "gpt2", Some(&tuned));
    let pair = Pair::new(backend, tuned, untuned, limits, limits.pages / 2).unwrap();
    let pair = Arc::new(Mutex::new(pair));
    let guidance = Guidance { pair: pair.clone(), format: format.clone(), weight: 1.0 };
    let tokens = GuideTokens::Ids;
    let scored =
        WeightedPair { pair, weight: 1.0, format: format.clone(), tokens, eos, longest_token };
    let engine = Engine::new(backend.clone(), load(backend, "gpt2", None), limits).unwrap();
    let proposer =
        LocalProposer::new(engine, format, eos.into_iter().collect(), vec![guidance]).unwrap();
    let mut scheduler = Scheduler::new(proposer, PairGuide::new(vec![scored], None), 2);
    let settings = Settings {
        beam_width: 2,
        successors: 2,
        chunk_len: Some(3),
        max_new_tokens: 7,
        sampling: Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 },
        seed: 1,
        stop: StopStrings::default(),
        compat: false,
    };
    let built = backend.memory().allocations();
    assert!(built > 0);
    for id in 0..2 {
        scheduler.submit(id, &Prompt::Text("The film".into()), settings.clone()).unwrap();
    }
    let mut done = 0;
    while scheduler.pending() > 0 {
        done += scheduler.tick().unwrap().into_iter().filter(|f| f.result.is_ok()).count();
    }
    assert_eq!(done, 2);
    assert_eq!(backend.memory().allocations(), built, "{} allocated", backend.describe());
}

/// Goal: prefilling, drawing under guidance, scoring and forking take no device memory.
#[test]
fn nothing_is_allocated_once_the_engines_are_built() {
    on_every_backend!(|backend| {
        search(&backend);
    });
}

/// A device that launches nothing and has little memory, whatever the budget says.
struct Refusing(Emulator);

impl Device for Refusing {
    const MARGIN: usize = 2;
    const NAME: &'static str = "refusing";

    fn describe(&self) -> String {
        "refusing".into()
    }

    fn multiprocessors(&self) -> usize {
        1
    }

    fn shared_bytes(&self) -> usize {
        self.0.shared_bytes()
    }

    fn multiplies_wide(&self) -> bool {
        self.0.multiplies_wide()
    }

    fn tile_map(&self, shape: TileShape) -> Result<u64> {
        self.0.tile_map(shape)
    }

    fn starts_early(&self, kernel: &'static str) -> bool {
        self.0.starts_early(kernel)
    }

    fn room(&self) -> Option<Room> {
        None
    }

    fn side(&self) -> Result<Self> {
        self.0.side().map(Self)
    }

    fn after(&self, other: &Self) -> Result<()> {
        self.0.after(&other.0)
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        if bytes > 1 << 30 {
            return Err(Error::DeviceMemory {
                place: "the refusing device",
                bytes,
                free: Some(77),
            });
        }
        self.0.alloc(bytes)
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        // SAFETY: as the caller says.
        unsafe { self.0.free(address, bytes) }
    }

    unsafe fn upload(&self, source: &[u8], target: u64) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe { self.0.upload(source, target) }
    }

    unsafe fn download(&self, source: u64, target: &mut [u8]) -> Result<()> {
        // SAFETY: as the caller says.
        unsafe { self.0.download(source, target) }
    }
}

impl Launcher for Refusing {
    type Graph = ();

    unsafe fn launch(&self, step: &Step) -> Result<()> {
        Err(Error::Cuda { what: format!("launching {}", step.launch), reason: "no".into() })
    }

    unsafe fn record(&self, _: &[Step]) -> Result<()> {
        unreachable!("nothing was launched")
    }

    unsafe fn change(&self, (): &mut (), _: usize, _: &Step) -> Result<()> {
        unreachable!("nothing was recorded")
    }

    unsafe fn start(&self, (): &(), _: &[Step]) -> Result<()> {
        unreachable!("nothing was recorded")
    }
}

/// Goal: a launch that fails says which kernel, which grid and which shapes; memory that a device
/// does not have is named with its size, and nothing of the budget is lost by it.
#[test]
fn what_a_device_refuses_is_named() {
    let backend = CudaBackend::new(Refusing(Emulator::new(1))).unwrap();
    let (x, weight) = (backend.alloc(3 * 40).unwrap(), backend.alloc(40).unwrap());
    let mut out = backend.alloc(3 * 40).unwrap();
    let error = backend.rms_norm(3, &x, &weight, 1e-5, &mut out).unwrap_err().to_string();
    for part in ["rms_norm over 3 x 1 x 1 blocks of 64 threads with 8 bytes", "width: 40", "no"] {
        assert!(error.contains(part), "{error}");
    }
    let copies: Vec<(u32, u32)> = (0..100).map(|page| (page, page + 100)).collect();
    let heads = Heads { query: 1, kv: 1, dim: 8 };
    let shape = PoolShape { layers: 1, pages: 200, heads };
    let mut pool = backend.alloc(shape.len()).unwrap();
    let error = backend.copy_pages(shape, &copies, &mut pool).unwrap_err().to_string();
    assert!(error.contains("pages: 200") && error.len() < 1000, "{error}");
    let taken = backend.memory().taken();
    let error = backend.alloc::<f32>(1 << 30).err().unwrap().to_string();
    assert!(error.contains("no 4294967296 bytes") && error.contains("77 are free"), "{error}");
    assert_eq!(backend.memory().taken(), taken);
}

/// Goal: heads that no kernel takes, or none that fits a smaller GPU's shared memory, are refused
/// before anything is loaded, by name and with what to do; those of all known families are not.
#[test]
fn heads_beyond_the_kernels_are_refused() {
    let small = CudaBackend::new(Emulator::new(1).with_shared_bytes(99 << 10)).unwrap();
    let large = CudaBackend::emulated(1).unwrap();
    let heads = |dim| Heads { query: 2, kv: 1, dim };
    for dim in [1, 64, 80, 128] {
        small.check_heads(heads(dim)).unwrap();
    }
    large.check_heads(heads(256)).unwrap();
    let said = small.check_heads(heads(256)).unwrap_err().to_string();
    assert!(said.contains("of which it has 101376; --device cpu can"), "{said}");

    let config = Config { heads: heads(272), ..load(&Arc::new(small), "gpt2", None).config };
    let taken = large.memory().taken();
    let said = Model::random(&large, config, 1).err().unwrap().to_string();
    assert!(said.contains("heads have 272 channels, and its kernels take up to 256"), "{said}");
    assert!(said.starts_with("--device emulator cannot be used"), "{said}");
    assert_eq!(large.memory().taken(), taken, "nothing was loaded");
}
