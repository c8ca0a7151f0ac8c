//! A task and a verifier of your own, trained by the library's loop: a small decoder learns to sort three digits.
//!
//! ```sh
//! cargo run --release --example own_task -- 60
//! ```
//! The number is how many steps of reinforcement follow the warm-up.

use gradstone::device::Device;
use gradstone::models::{Decoder, DecoderConfig};
use gradstone::recipes;
use gradstone::rng::{Sequence, Stream};
use gradstone::tasks::environment::OneShot;
use gradstone::tasks::{Attempt, Example, Judgement, Language, Part, Problem, Task, Verifier};
use gradstone::text::Tokenizer;
use gradstone::train::codec::Codec;
use gradstone::train::{Observer, Reinforcement, RunDir, StepMetrics, World, config, run};
use gradstone::{DType, Error, Result};

/// Problems such as `718=` with the answer `178`. Those whose digits add up to a multiple of five are held out.
struct Sorting;

impl Sorting {
    fn drawn(&self, draws: &mut Sequence, held_out: bool) -> Problem {
        loop {
            let digits: Vec<u32> = (0..3).map(|_| draws.below(10)).collect();
            if digits.iter().sum::<u32>().is_multiple_of(5) != held_out {
                continue;
            }
            let mut sorted = digits.clone();
            sorted.sort_unstable();
            let text = |digits: &[u32]| digits.iter().map(u32::to_string).collect::<String>();
            let id = digits.iter().fold(0, |id, digit| 10 * id + u64::from(*digit));
            return Problem::text(id, text(&digits) + "=", text(&sorted));
        }
    }
}

impl Task for Sorting {
    fn name(&self) -> &str {
        "sorting"
    }

    fn problem(&self, seed: u64, index: u64) -> Problem {
        self.drawn(&mut Sequence::new(seed, Stream::Task, index), false)
    }

    fn by_id(&self, _seed: u64, id: u64) -> Option<Problem> {
        let digits: Vec<u32> = [id / 100, id / 10 % 10, id % 10].map(|digit| digit as u32).to_vec();
        let mut sorted = digits.clone();
        sorted.sort_unstable();
        let text = |digits: &[u32]| digits.iter().map(u32::to_string).collect::<String>();
        (id < 1000).then(|| Problem::text(id, text(&digits) + "=", text(&sorted)))
    }

    fn held_out(&self, _seed: u64, count: usize) -> Vec<Problem> {
        let mut draws = Sequence::new(0, Stream::HeldOut, 0);
        (0..count).map(|_| self.drawn(&mut draws, true)).collect()
    }

    fn worked_example(&self, seed: u64, index: u64) -> Option<Example> {
        let problem = self.problem(seed, index);
        let answer = Part::Text(problem.answer.clone());
        Some(Example::one_shot(problem, answer))
    }

    fn verifier(&self) -> Box<dyn Verifier> {
        Box::new(InOrder)
    }

    fn language(&self) -> Language<'_> {
        Language::Characters("0123456789=")
    }
}

/// Two rewards: the answer itself, and how many digits stand where they belong.
struct InOrder;

impl Verifier for InOrder {
    fn name(&self) -> &str {
        "in_order"
    }

    fn rewards(&self) -> Vec<String> {
        vec!["right".to_owned(), "digits".to_owned()]
    }

    fn judge(&self, problem: &Problem, attempt: &Attempt<'_>) -> Judgement {
        let right = f32::from(u8::from(attempt.text == problem.answer));
        let same = attempt.text.chars().zip(problem.answer.chars()).filter(|(a, b)| a == b).count();
        Judgement { rewards: vec![right, same as f32 / 3.0], ..Judgement::default() }
    }
}

/// Prints a line now and then.
struct Lines;

impl Observer for Lines {
    fn step(&mut self, metrics: &StepMetrics) {
        if let (Some(reward), Some(accuracy)) = (metrics.reward, metrics.eval_accuracy) {
            println!("step {}: reward {reward:.2}, held out {accuracy:.2}", metrics.step);
        }
    }
}

fn main() -> Result<()> {
    let steps = std::env::args().nth(1).map_or(Ok(60), |text| text.parse());
    let steps = steps.map_err(|_| Error::invalid("give a number of steps"))?;
    let task = Sorting;
    let Language::Characters(alphabet) = task.language() else { return Ok(()) };
    let tokenizer = Tokenizer::characters(alphabet)?;
    let mut model = DecoderConfig::small("llama", tokenizer.vocab_size(), 48, 2, 4, 16)?;
    model.set_eos(tokenizer.eos());
    let policy = Box::new(Decoder::random(model, DType::F32, 1)?);

    // The settings of a recipe, changed as `--set` would change them; the model and the task are given beside them.
    let mut settings = recipes::arithmetic();
    settings.steps = steps;
    settings.warmup.steps = 120;
    settings.rollout.prompts = 32;
    settings.rollout.max_new_tokens = 4;
    settings.reward.weights.insert("digits".to_owned(), 0.5);
    settings.evaluation.problems = 100;

    let stop = tokenizer.eos().to_vec();
    let world = World {
        verifier: task.verifier(),
        task: Box::new(task),
        environment: Box::new(OneShot),
        codec: Codec::text(tokenizer),
        stop,
        replies: false,
    };
    let folder = std::env::temp_dir().join(format!("gradstone-sorting-{}", std::process::id()));
    let directory = RunDir::create(&folder, &config::to_toml(&settings)?)?;
    let mut trainee = Reinforcement::new(settings, world, policy)?;
    let before = trainee.evaluate()?.0;
    run(&mut trainee, &directory, &mut Lines)?;
    let after = trainee.evaluate()?.0;
    println!("held out: {before:.2} before, {after:.2} after, on {}", Device::Cpu);
    drop(directory);
    std::fs::remove_dir_all(&folder).map_err(|e| Error::io("removing the run directory", e))?;
    if after > before { Ok(()) } else { Err(Error::state("nothing was learned")) }
}
