use crate::harness::*;
use trimtab::backend::cuda::{CudaBackend, Emulator};
use trimtab::backend::{Backend, Entries, Heads, NO_SLOT, PAGE_LEN, PoolShape, Qkv, Rotary};
use trimtab::tensor::bf16;

#[derive(Clone, Copy)]
struct Case {
    rows: usize,
    heads: Heads,
    inputs: usize,
    bias: bool,
    rotary: bool,
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        // Heads that are cut into pairs of 8 channels and others; rows of whole chunks and others.
        let shapes = [
            ((1, 1, 16), 24),
            ((4, 2, 32), 264),
            ((3, 1, 80), 72),
            ((2, 1, 24), 40),
            ((2, 2, 16), 33),
        ];
        let rows = [1, 7, 8, 9, 16, 17, 40];
        shapes.into_iter().flat_map(move |((query, kv, dim), inputs)| {
            rows.into_iter().enumerate().map(move |(index, rows)| Self {
                rows,
                heads: Heads { query, kv, dim },
                inputs,
                bias: index % 2 == 0,
                rotary: index % 3 != 0,
            })
        })
    }
}

/// Queries of all rows, and the pool; by the op, or by the three that it stands for.
fn run<B: Backend>(backend: &B, case: Case, in_parts: bool) -> (Vec<bf16>, Vec<bf16>) {
    let Case { rows, heads, inputs, .. } = case;
    let mut random = Random::new((rows * inputs + heads.dim) as u64);
    let shape = PoolShape { layers: 2, pages: 4 * rows, heads };
    let width = heads.qkv_width();
    let weight = matrix(backend, width, inputs, &random.halves(width * inputs, 1.0));
    let x = upload(backend, &random.halves(rows * inputs, 1.0));
    let bias = upload(backend, &random.numbers(width, 1.0));
    let angles = upload(backend, &random.numbers(50 * heads.dim, 1.0));
    let positions = upload(backend, &random.indices(rows, 50));
    let entries = Listed::random(rows, &mut random);
    let mut slots = random.shuffled(shape.pages * PAGE_LEN)[..entries.list.len()].to_vec();
    // Of rows that have ended.
    slots.iter_mut().skip(1).step_by(3).for_each(|slot| *slot = NO_SLOT);
    let slots = upload(backend, &slots);
    let [starts, list] = entries.upload(backend);
    let mut pool = upload(backend, &vec![bf16::ONE; shape.len()]);
    let mut out = upload(backend, &vec![bf16::ONE; rows * width]);
    let args = Qkv {
        layer: 1,
        shape,
        x: &x,
        weight: &weight,
        bias: case.bias.then_some(&bias),
        rotary: case.rotary.then_some(Rotary { positions: &positions, cos_sin: &angles }),
        entries: Entries { rows, starts: &starts, list: &list },
        slots: &slots,
        pool: &mut pool,
        out: &mut out,
    };
    if in_parts { args.in_parts(backend) } else { backend.qkv(args) }.unwrap();
    let out = download(backend, &out);
    let queries = out.chunks_exact(width).flat_map(|row| &row[..heads.query_width()]);
    (queries.copied().collect(), download(backend, &pool))
}

/// Goal: queries, and keys and values in the slots of all their entries, with heads and rows of all kinds. A rotation
/// adds two numbers that were rounded to bf16.
#[test]
fn qkv_agrees_with_the_oracle() {
    on_every_backend!(|name, backend| {
        for case in Case::all() {
            let (queries, pool) = run(&backend, case, false);
            let (exact_queries, exact_pool) = run(&Oracle, case, false);
            let largest = case.inputs as f64 + 1.0;
            let absolute = sum_error(case.inputs, 1.0) + 2.0 * BF16 * largest.sqrt();
            assert_close(&name, &queries, &exact_queries, 2.0 * BF16, absolute);
            assert_close(&name, &pool, &exact_pool, 2.0 * BF16, absolute);
        }
    });
}

/// Goal: the bits are those of matmul, rope and store_kv.
#[test]
fn qkv_gives_the_bits_of_its_parts() {
    let bits = |(queries, pool): (Vec<bf16>, Vec<bf16>)| -> Vec<u16> {
        queries.into_iter().chain(pool).map(bf16::to_bits).collect()
    };
    let check = |name: &str, same: bool| assert!(same, "{name}");
    for case in Case::all() {
        let name = format!("{} rows of {} to {:?}", case.rows, case.inputs, case.heads);
        for (device, backend) in gpus() {
            let same = bits(run(&backend, case, false)) == bits(run(&backend, case, true));
            check(&format!("{device}, {name}"), same);
        }
        for (device, backend) in emulators() {
            let same = bits(run(&backend, case, false)) == bits(run(&backend, case, true));
            check(&format!("{device}, {name}"), same);
        }
    }
}

/// Goal: few rows take one launch, as a decode step counts on.
#[test]
fn few_rows_take_one_kernel() {
    let launches = |rows| {
        let backend = CudaBackend::new(Emulator::new(1)).unwrap();
        let heads = Heads { query: 4, kv: 2, dim: 32 };
        let case = Case { rows, heads, inputs: 64, bias: true, rotary: true };
        let before = backend.launches();
        run(&backend, case, false);
        backend.launches() - before
    };
    assert_eq!(launches(8), 1);
    assert_eq!(launches(40), 3);
}
