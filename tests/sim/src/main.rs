//! Runs seeds, and broken rules. `ci/sim --help` explains.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use catena_sim::mutants;
use catena_sim::run::{Outcome, run};
use clap::Parser;
use parking_lot::Mutex;

/// Runs whole Catena clusters in a deterministic simulator, with faults, and checks every answer.
///
/// A seed decides everything that happens. Every seed that breaks an invariant is printed with the command that runs it again; with
/// CATENA_LOG=info (or debug) that run tells its story.
#[derive(Parser)]
#[command(name = "ci/sim")]
struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Runs every deliberately broken rule until the simulator notices it, for at most so many seeds each
    #[arg(long)]
    mutants: bool,
    /// With --mutants: only those whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// With --mutants: most seeds for each
    #[arg(long, default_value_t = 2000)]
    most: u64,
    /// With --mutants: the same seeds with every rule in force, which all have to hold
    #[arg(long)]
    control: bool,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Says one line for every seed
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if std::env::var_os("CATENA_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_env("CATENA_LOG");
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    // A panic is an outcome here; it is told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    if arguments.mutants { mutants(&arguments) } else { seeds(&arguments) }
}

fn seeds(arguments: &Arguments) -> ExitCode {
    let next = AtomicU64::new(arguments.from);
    let end = arguments.from + arguments.seeds;
    let total = Mutex::new((0, 0, 0, 0));
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= end {
                        return;
                    }
                    let begun = Instant::now();
                    let outcome = run(seed);
                    tell(arguments, seed, &outcome, begun);
                    let mut total = total.lock();
                    total.0 += outcome.operations;
                    total.1 += outcome.faults;
                    total.2 += usize::from(!outcome.broken.is_empty());
                    total.3 += outcome.errors;
                }
            });
        }
    });
    let (operations, faults, failed, _) = total.into_inner();
    println!("sim: {} seeds, {operations} operations, {faults} faults, {failed} failed", arguments.seeds);
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn tell(arguments: &Arguments, seed: u64, outcome: &Outcome, begun: Instant) {
    if arguments.verbose {
        println!(
            "seed {seed}: {} operations, {} faults, {} errors told, {} steps, {:.0?} simulated in {:.0?}, digest {:016x}",
            outcome.operations,
            outcome.faults,
            outcome.errors,
            outcome.steps,
            outcome.time,
            begun.elapsed(),
            outcome.digest
        );
    }
    if !outcome.broken.is_empty() {
        println!("seed {seed} failed; again: CATENA_LOG=info ci/sim --seeds 1 --from {seed}");
        for broken in &outcome.broken {
            println!("  {broken}");
        }
    }
}

fn mutants(arguments: &Arguments) -> ExitCode {
    let cases: Vec<_> =
        mutants::all().into_iter().filter(|case| case.name.contains(&arguments.only)).collect();
    let mut escaped = 0;
    println!("{:<60} {:>6}  noticed by", "broken rule", "seeds");
    for case in &cases {
        let next = AtomicU64::new(arguments.from);
        let end = arguments.from + arguments.most;
        let found: Mutex<Option<(u64, String)>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..arguments.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Relaxed);
                        // What is found by a later seed does not end the search among earlier ones.
                        if seed >= end || found.lock().as_ref().is_some_and(|(first, _)| *first < seed) {
                            return;
                        }
                        let outcome = if arguments.control { case.control(seed) } else { case.run(seed) };
                        if arguments.control && !outcome.broken.is_empty() {
                            println!("{} fails at seed {seed}: {}", case.name, outcome.broken.join("; "));
                        }
                        if let Some(broken) = outcome.broken.into_iter().next() {
                            let mut found = found.lock();
                            if found.as_ref().is_none_or(|(first, _)| seed < *first) {
                                *found = Some((seed, broken));
                            }
                        }
                    }
                });
            }
        });
        match found.into_inner() {
            Some((seed, _)) if !case.control(seed).broken.is_empty() => {
                escaped += 1;
                println!(
                    "{:<60} {:>6}  FAILS WITH THE RULE IN FORCE TOO",
                    case.name,
                    seed - arguments.from + 1
                );
            }
            Some((seed, broken)) => {
                let invariant = broken.split(':').next().unwrap_or_default();
                println!("{:<60} {:>6}  {invariant}", case.name, seed - arguments.from + 1);
            }
            None if arguments.control => println!("{:<60} {:>6}  holds", case.name, arguments.most),
            None => {
                escaped += 1;
                println!("{:<60} {:>6}  ESCAPED", case.name, arguments.most);
            }
        }
    }
    println!("mutants: {} broken rules, {escaped} escaped", cases.len());
    if escaped > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
