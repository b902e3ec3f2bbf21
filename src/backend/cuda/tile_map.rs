//! Maps of matrices for Hopper's copy engine, made by the driver: 128 bytes of device memory each.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::device::TileShape;
use super::params::TileMap;

/// Numbers of a row of a box: 128 bytes, which is what chunks are exchanged within.
const BOX_INPUTS: u32 = 64;

/// Maps of one piece of device memory.
const PIECE: usize = 512;

/// The maps made so far. They live as long as the process, as the GPU's context does.
#[derive(Default)]
pub struct TileMaps {
    known: HashMap<TileShape, u64>,
    /// What is free of the last piece.
    free: std::ops::Range<u64>,
}

impl TileMaps {
    /// The map's address in device memory.
    ///
    /// # Safety
    /// The context must be set.
    pub unsafe fn get(&mut self, shape: TileShape) -> Result<u64, DriverError> {
        if let Some(&address) = self.known.get(&shape) {
            return Ok(address);
        }
        let map = encode(shape)?;
        let bytes = size_of::<TileMap>();
        if self.free.is_empty() {
            // SAFETY: the context is set.
            let piece = unsafe { result::malloc_sync(PIECE * bytes) }?;
            self.free = piece..piece + (PIECE * bytes) as u64;
        }
        let address = self.free.start;
        // SAFETY: a map is plain bytes; nothing knows this address yet. The copy has happened once all streams were
        // waited for: a copy of pageable memory may return earlier.
        unsafe {
            let source = std::slice::from_raw_parts((&raw const map).cast::<u8>(), bytes);
            result::memcpy_htod_sync(address, source)?;
            sys::cuCtxSynchronize().result()?;
        }
        self.free.start += bytes as u64;
        self.known.insert(shape, address);
        Ok(address)
    }
}

fn encode(shape: TileShape) -> Result<sys::CUtensorMap, DriverError> {
    const { assert!(size_of::<sys::CUtensorMap>() == size_of::<TileMap>()) };
    let TileShape { address, inputs, rows, box_rows, twin } = shape;
    let (row_bytes, box_rows) = (inputs as u64 * 2, u32::try_from(box_rows).expect("up to 256"));
    match twin {
        None => {
            encode_sides(address, [inputs as u64, rows as u64], [row_bytes], [BOX_INPUTS, box_rows])
        }
        // Groups of 8 rows, of both matrices in turn.
        Some(twin) => encode_sides(
            address,
            [inputs as u64, 8, 2, rows as u64 / 8],
            [row_bytes, twin, 8 * row_bytes],
            [BOX_INPUTS, 8, 2, box_rows / 16],
        ),
    }
}

/// A map by its sides, the one whose numbers follow one another first; the strides are those of the others, in bytes.
fn encode_sides<const SIDES: usize, const STRIDES: usize>(
    address: u64,
    sizes: [u64; SIDES],
    strides: [u64; STRIDES],
    boxes: [u32; SIDES],
) -> Result<sys::CUtensorMap, DriverError> {
    const { assert!(SIDES == STRIDES + 1) };
    let steps = [1; SIDES];
    let mut map = MaybeUninit::<sys::CUtensorMap>::uninit();
    // SAFETY: as many sizes, box sides and steps as sides, and one stride fewer; the driver writes the map.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr(),
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            SIDES as u32,
            address as *mut c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()?;
        Ok(map.assume_init())
    }
}
