//! The fuzz targets without libFuzzer: random and mutated inputs for a given time, no coverage to guide them.
//!
//! ```text
//! cargo run --release --no-default-features --example stable -- [target|all] [seconds] [seed]
//! ```

use std::{
    env, fs,
    panic::catch_unwind,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use tower_session_end_fuzz::TARGETS;

/// Small, and good enough to choose.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

/// What libFuzzer has found, if it was there.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target));
    files.into_iter().flatten().filter_map(|file| fs::read(file.ok()?.path()).ok()).collect()
}

fn next(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = if corpus.is_empty() || random.below(3) == 0 {
        (0..random.below(400)).map(|_| random.byte()).collect()
    } else {
        corpus[random.below(corpus.len())].clone()
    };
    for _ in 0..random.below(8) {
        let (at, byte) = (random.below(input.len() + 1), random.byte());
        match random.below(4) {
            0 => input.insert(at, byte),
            1 if at < input.len() => drop(input.remove(at)),
            2 if !corpus.is_empty() => {
                let other = &corpus[random.below(corpus.len())];
                input.truncate(at);
                input.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
            _ => {
                if let Some(place) = input.get_mut(at) {
                    *place = byte;
                }
            }
        }
    }
    input
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let wanted = arguments.next().unwrap_or_else(|| "all".to_owned());
    let seconds = arguments.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(5);
    let seed = arguments.next().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
    let mut code = ExitCode::SUCCESS;
    for (name, target) in TARGETS.iter().filter(|(name, _)| wanted == "all" || wanted == *name) {
        let (corpus, mut random) = (corpus(name), Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
        let (begun, mut runs) = (Instant::now(), 0_u64);
        let found = loop {
            if begun.elapsed() >= Duration::from_secs(seconds) {
                break None;
            }
            // The corpus first, as it is.
            let input = corpus.get(runs as usize).cloned().unwrap_or_else(|| next(&mut random, &corpus));
            runs += 1;
            if catch_unwind(|| target(&input)).is_err() {
                break Some(input);
            }
        };
        println!("{name}: {runs} runs in {:.0?}, {} inputs to begin with", begun.elapsed(), corpus.len());
        if let Some(input) = found {
            println!("{name}: fails with {input:?}");
            code = ExitCode::FAILURE;
        }
    }
    code
}
