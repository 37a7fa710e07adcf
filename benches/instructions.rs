//! What the layer costs a request, in instructions: by callgrind, as the difference of two run lengths, so that what
//! happens once does not count. Prints a table of what each layer adds to the bare host.
//!
//! `valgrind` has to be installed. Without it, or without `--bench`, every case runs once and nothing is measured.

mod host;

use std::{
    env,
    error::Error,
    process::{Command, exit},
};

use host::{Around, Case, HEADERS, Id};

/// The two run lengths. What grows now and then (a table, a buffer) has grown before the first.
const SHORT: usize = 500;
const LONG: usize = 2500;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [flag, case, length] = args.as_slice()
        && flag == "--run"
    {
        let _rest = run(cases().nth(case.parse()?).ok_or("no such case")?, length.parse()?, LONG);
        // Without a drop of the rest, which is longer after a short run.
        exit(0);
    }
    let measures =
        args.iter().any(|arg| arg == "--bench") && Command::new("valgrind").arg("--version").output().is_ok();
    if !measures {
        cases().for_each(|case| drop(run(case, 1, 1)));
        return Ok(());
    }
    println!("| id | headers | around the host | instructions | over bare |");
    println!("|---|---:|---|---:|---:|");
    let mut bare = 0;
    for (index, case) in cases().enumerate() {
        let Case { around, id, headers } = case;
        let each = (count(index, LONG)? - count(index, SHORT)?) / (LONG - SHORT) as u64;
        if around == Around::Bare {
            bare = each;
        }
        println!("| {} | {headers} | {} | {each} | {} |", id.name(), around.name(), each.saturating_sub(bare));
    }
    Ok(())
}

/// All cases, the bare one before those that are compared with it.
fn cases() -> impl Iterator<Item = Case> {
    Id::ALL.into_iter().flat_map(|id| {
        HEADERS.into_iter().flat_map(move |headers| Around::ALL.map(|around| Case { around, id, headers }))
    })
}

/// Runs the case `length` times, and returns the rest of as many requests as were `made`: always the same number, so that
/// neither making them counts, nor what lies beside them in the allocator's heap.
fn run(case: Case, length: usize, made: usize) -> impl Sized {
    let mut exchange = case.exchange();
    let requests: Vec<_> = (0..made).map(|_| case.request()).collect();
    let mut requests = requests.into_iter();
    requests.by_ref().take(length).for_each(&mut exchange);
    (requests, exchange)
}

/// The instructions of a whole process that runs the case so often.
fn count(case: usize, length: usize) -> Result<u64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["--run", &case.to_string(), &length.to_string()])
        .output()?;
    let said = String::from_utf8(output.stderr)?;
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let (_, collected) = collected.ok_or_else(|| format!("callgrind counted nothing: {said}"))?;
    Ok(collected.trim().parse()?)
}
