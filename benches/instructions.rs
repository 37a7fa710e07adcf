//! What the layer costs a request, in instructions: by callgrind, as the difference of two run lengths, so that what
//! happens once does not count. Prints a table of what each layer adds to the bare host.
//!
//! `valgrind` has to be installed. Without it, or without `--bench`, every case runs once and nothing is measured.

mod host;

use std::{env, error::Error, process::Command};

use host::{Around, Case, HEADERS, Id};

/// The two run lengths. What grows now and then (a table, a buffer) has grown before the first.
const SHORT: u64 = 500;
const LONG: u64 = 2500;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [flag, case, length] = args.as_slice()
        && flag == "--run"
    {
        run(cases().nth(case.parse()?).ok_or("no such case")?, length.parse()?);
        return Ok(());
    }
    let measures =
        args.iter().any(|arg| arg == "--bench") && Command::new("valgrind").arg("--version").output().is_ok();
    if !measures {
        cases().for_each(|case| run(case, 1));
        return Ok(());
    }
    println!("| id | headers | around the host | instructions | over bare |");
    println!("|---|---:|---|---:|---:|");
    let mut bare = 0;
    for (index, case) in cases().enumerate() {
        let Case { around, id, headers } = case;
        let each = (count(index, LONG)? - count(index, SHORT)?) / (LONG - SHORT);
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

fn run(case: Case, length: u64) {
    let mut exchange = case.exchange();
    for _ in 0..length {
        exchange(case.request());
    }
}

/// The instructions of a whole process that runs the case so often.
fn count(case: usize, length: u64) -> Result<u64, Box<dyn Error>> {
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
