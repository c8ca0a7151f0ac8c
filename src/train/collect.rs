//! One step's episodes: problems asked, answered, judged, and put side by side as a batch.

use super::questions::{Asked, Questions};
use super::settings::RolloutSettings;
use super::world::World;
use crate::error::Result;
use crate::rl::activity::Activity;
use crate::rl::batch::{Batch, Verdicts};
use crate::rl::dynamic_sampling::{Next, Refill};
use crate::rl::episode::Episode;
use crate::rl::policy::Policy;
use crate::rl::sampling::Sampling;
use crate::rng::Stream;
use crate::tasks::{Faults, Gives, Judgement, Label, Problem};

/// A step's batch with what the logs want of it.
pub(super) struct Collected {
    pub batch: Batch,
    /// `[groups]`.
    pub problems: Vec<Problem>,
    /// `[episodes]`.
    pub texts: Vec<String>,
    /// Groups that were generated for it; more than there are where dynamic sampling left some out.
    pub drawn: usize,
    /// What verifiers got wrong.
    pub faults: Faults,
    /// Groups in which only what came back is right.
    pub only_replayed: usize,
    /// Dynamic sampling found no group that teaches: these are some that it left out.
    pub unmixed: bool,
}

/// The completions of one problem, judged.
struct Group {
    problem: Problem,
    prompt: Vec<i32>,
    /// What came back first, where something did.
    episodes: Vec<Episode>,
    replayed: Vec<bool>,
    texts: Vec<String>,
    judgements: Vec<Option<Judgement>>,
    /// The weighted sum of each episode's named rewards, NaN where there is none.
    rewards: Vec<f32>,
    /// Of the greedy answer.
    greedy: Option<f32>,
}

/// How episodes are drawn and judged.
pub(super) struct Collector<'a> {
    pub world: &'a World,
    pub policy: &'a dyn Policy,
    pub settings: &'a RolloutSettings,
    pub seed: u64,
    /// `[functions]` weights of the named rewards.
    pub weights: &'a [f64],
    /// Whether a greedy answer to each problem is wanted.
    pub greedy: bool,
    /// Told of what is being done.
    pub activity: &'a Activity,
}

impl Collector<'_> {
    /// How fresh episodes of the run are drawn.
    pub fn sampling(&self, first_sequence: u64) -> Sampling {
        Sampling {
            temperature: self.settings.temperature,
            truncation: self.settings.truncation(),
            max_new_tokens: self.settings.max_new_tokens,
            stop: self.world.stop.clone(),
            banned: self.world.codec.banned(),
            seed: self.seed,
            stream: Stream::Sample,
            first_sequence,
            activity: self.activity.clone(),
        }
    }

    /// The step's groups: the next problems, or, with dynamic sampling, as many as it takes. `sequence` is the number of the
    /// next fresh episode, `update` that of the next update.
    pub fn collect(
        &self,
        questions: &mut Questions,
        sequence: &mut u64,
        update: u64,
    ) -> Result<Collected> {
        let wanted = self.settings.prompts;
        let mut faults = Faults::default();
        let Some(sampling) = self.settings.dynamic_sampling else {
            let groups = self.groups(wanted, questions, sequence, update, &mut faults)?;
            return self.batch(groups, wanted, faults, false);
        };
        let mut refill = Refill::new(sampling, wanted)?;
        while let Next::Draw(missing) = refill.next() {
            let drawn = self.groups(missing, questions, sequence, update, &mut faults)?;
            refill.add_round(drawn.into_iter().map(|group| {
                let rewards = group.rewards.clone();
                (group, rewards)
            }));
        }
        let drawn = refill.drawn();
        let (kept, left_out) = refill.into_groups();
        match kept.is_empty() {
            true => self.batch(left_out, drawn, faults, true),
            false => self.batch(kept, drawn, faults, false),
        }
    }

    /// Draws episodes, some prompts at a time.
    fn drawn(
        &self,
        problems: &[&Problem],
        prompts: &[Vec<i32>],
        counts: &[usize],
        mut sampling: Sampling,
    ) -> Result<Vec<Episode>> {
        let mut drawn: Vec<Episode> = Vec::new();
        self.activity.begin("generating", counts.iter().sum());
        let most = counts.iter().copied().max().unwrap_or(1).max(1);
        let together = (self.settings.batch / most).max(1);
        for ((prompts, counts), problems) in
            prompts.chunks(together).zip(counts.chunks(together)).zip(problems.chunks(together))
        {
            let conversation = self.world.replies_to(problems);
            let replies = if self.world.replies { Some(&conversation as _) } else { None };
            let mut some = self.policy.generate(prompts, counts, &sampling, replies)?;
            sampling.first_sequence += some.len() as u64;
            drawn.append(&mut some);
        }
        Ok(drawn)
    }

    /// The weighted sum of an episode's named rewards.
    fn reward(&self, judgement: Option<&Judgement>) -> f32 {
        match (judgement, self.weights) {
            (None, _) => f32::NAN,
            (Some(judgement), [1.0]) => judgement.rewards[0],
            (Some(judgement), weights) => {
                let terms = judgement.rewards.iter().zip(weights);
                terms.map(|(reward, weight)| f64::from(*reward) * weight).sum::<f64>() as f32
            }
        }
    }

    /// Asks the next `count` problems and judges the completions.
    fn groups(
        &self,
        count: usize,
        questions: &mut Questions,
        sequence: &mut u64,
        update: u64,
        faults: &mut Faults,
    ) -> Result<Vec<Group>> {
        let sampling = self.sampling(*sequence);
        let drawn_from = sampling.distribution();
        let batch = self.settings.prompts;
        let asked = questions.ask(count, batch, self.world, self.policy, &drawn_from)?;
        let problems: Vec<&Problem> = asked.iter().map(|one| &one.problem).collect();
        let prompts =
            problems.iter().map(|one| self.world.prompt(one)).collect::<Result<Vec<_>>>()?;
        let fresh: Vec<usize> = asked
            .iter()
            .map(|one| self.settings.group - usize::from(one.replayed.is_some()))
            .collect();
        let drawn = self.drawn(&problems, &prompts, &fresh, sampling)?;
        *sequence += drawn.len() as u64;
        let greedy =
            if self.greedy { Some(self.greedy_rewards(&problems, &prompts)?) } else { None };

        let mut drawn = drawn.into_iter();
        let mut groups = Vec::with_capacity(asked.len());
        for (at, (Asked { problem, replayed }, prompt)) in
            asked.into_iter().zip(prompts).enumerate()
        {
            let back = replayed.map(|trajectory| Episode {
                prompt: 0,
                number: u64::MAX,
                mask: vec![1; trajectory.tokens.len()],
                tokens: trajectory.tokens,
                logprob: trajectory.logprob,
                drawn_logprob: None,
                truncated: false,
                order: None,
            });
            let mut marks = vec![true; usize::from(back.is_some())];
            marks.resize(marks.len() + fresh[at], false);
            let episodes: Vec<Episode> =
                back.into_iter().chain(drawn.by_ref().take(fresh[at])).collect();
            groups.push(Group {
                problem,
                prompt,
                episodes,
                replayed: marks,
                texts: Vec::new(),
                judgements: Vec::new(),
                rewards: Vec::new(),
                greedy: greedy.as_ref().map(|all| all[at]),
            });
        }
        // All at once, so that a judge which is a process can work on several.
        let of: Vec<&Problem> = groups
            .iter()
            .flat_map(|group| std::iter::repeat_n(&group.problem, group.episodes.len()))
            .collect();
        let episodes: Vec<&Episode> = groups.iter().flat_map(|group| &group.episodes).collect();
        self.activity.begin("judging", of.len());
        let judged = self.world.judge(&of, &episodes)?;
        *faults = faults.plus(&judged.faults);
        let (mut texts, mut judgements) = (judged.texts.into_iter(), judged.judgements.into_iter());
        for group in &mut groups {
            let count = group.episodes.len();
            group.texts = texts.by_ref().take(count).collect();
            group.judgements = judgements.by_ref().take(count).collect();
            group.rewards = group.judgements.iter().map(|one| self.reward(one.as_ref())).collect();
            let new = usize::from(group.replayed.first() == Some(&true));
            let fresh: Vec<&Episode> = group.episodes[new..].iter().collect();
            questions.remember(&group.problem, &fresh, &group.rewards[new..], update)?;
        }
        Ok(groups)
    }

    /// The reward of a greedy answer to each problem.
    fn greedy_rewards(&self, problems: &[&Problem], prompts: &[Vec<i32>]) -> Result<Vec<f32>> {
        let sampling = Sampling {
            temperature: 0.0,
            truncation: Default::default(),
            stream: Stream::HeldOut,
            ..self.sampling(0)
        };
        let answers = self.drawn(problems, prompts, &vec![1; prompts.len()], sampling)?;
        let answers: Vec<&Episode> = answers.iter().collect();
        let judged = self.world.judge(problems, &answers)?;
        Ok(judged.judgements.iter().map(|one| self.reward(one.as_ref())).collect())
    }

    /// Groups side by side. `drawn`: how many were generated for it.
    fn batch(
        &self,
        groups: Vec<Group>,
        drawn: usize,
        faults: Faults,
        unmixed: bool,
    ) -> Result<Collected> {
        let gives: Gives = self.world.verifier.gives();
        let (mut problems, mut prompts, mut episodes) = (Vec::new(), Vec::new(), Vec::new());
        let (mut texts, mut replayed, mut named) = (Vec::new(), Vec::new(), Vec::new());
        let mut labels: Vec<Option<Label>> = Vec::new();
        let mut verdicts: Vec<Option<Verdicts>> = Vec::new();
        let mut greedy = Vec::new();
        let mut offsets = vec![0i64];
        let mut only_replayed = 0;
        for group in groups {
            let right = |i: &usize| group.rewards[*i] > 0.5;
            let all = 0..group.rewards.len();
            let back_is_right = all.clone().any(|i| group.replayed[i] && right(&i));
            only_replayed +=
                usize::from(back_is_right && all.clone().all(|i| group.replayed[i] || !right(&i)));
            for (episode, judgement) in group.episodes.iter().zip(&group.judgements) {
                match judgement {
                    Some(judgement) => named.extend_from_slice(&judgement.rewards),
                    None => named.resize(named.len() + self.weights.len(), f32::NAN),
                }
                labels.push(judgement.as_ref().and_then(|one| one.label));
                let judged = judgement.as_ref().filter(|_| gives.steps);
                verdicts.push(judged.map(|one| self.world.verdicts(episode, one)).transpose()?);
                greedy.push(group.greedy.unwrap_or(f32::NAN));
            }
            problems.push(group.problem);
            prompts.push(group.prompt);
            replayed.extend(group.replayed);
            texts.extend(group.texts);
            episodes.extend(group.episodes);
            offsets.push(episodes.len() as i64);
        }
        let drawn_from = self.sampling(0).distribution();
        let device = self.policy.device();
        let mut batch = Batch::new(prompts, episodes, offsets, drawn_from, &device)?;
        batch.reward_names = self.world.verifier.rewards();
        batch.named_rewards = named;
        batch.label = gives.label.then_some(labels);
        batch.verdicts = gives.steps.then_some(verdicts);
        batch.greedy_reward = self.greedy.then_some(greedy);
        batch.replayed = replayed;
        Ok(Collected { batch, problems, texts, drawn, faults, only_replayed, unmixed })
    }
}
