//! Hard filters first; then the cheapest place that meets the deadline and the quality target.

use super::{Calibration, CapabilityModel, LatencyProfile, OutputLengths, Tier};
use crate::egress::Label;
use crate::policy::{Place, Policy, Provider, Rule};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A place that could answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its name: `device`, or that of a provider in the policy.
    pub name: String,
    /// True if it is this device.
    pub local: bool,
    /// What it takes for an answer.
    pub latency: LatencyProfile,
    /// Which trained model it is likened to.
    pub tier: Tier,
    /// How it differs from that.
    #[serde(default)]
    pub calibration: Calibration,
    /// Longest context, in tokens.
    pub context_tokens: u32,
    /// What it can do.
    #[serde(default)]
    pub offers: Needs,
    /// Price of a million input and output tokens.
    #[serde(default)]
    pub prices: [f64; 2],
    /// Energy of a token on this device, in joules.
    #[serde(default)]
    pub joules_per_token: f64,
    /// True while its circuit breaker is open.
    #[serde(default)]
    pub breaker_open: bool,
    /// Requests that share it right now.
    #[serde(default)]
    pub load: f32,
}

impl Candidate {
    /// A provider of a policy, with a latency profile that was measured or assumed.
    pub fn of(provider: &Provider, latency: LatencyProfile) -> Self {
        Self {
            name: provider.name.clone(),
            local: false,
            latency,
            tier: Tier::Strong,
            calibration: Calibration::default(),
            context_tokens: provider.context_tokens,
            offers: Needs {
                tools: provider.tools,
                vision: provider.vision,
            },
            prices: [provider.input_price, provider.output_price],
            joules_per_token: 0.0,
            breaker_open: false,
            load: 1.0,
        }
    }
}

/// What a task needs, or a place offers, besides text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Needs {
    /// Tools can be called.
    pub tools: bool,
    /// Images are read.
    pub vision: bool,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Task<'a> {
    /// The prompt: read for its words, never written into a receipt.
    pub prompt: &'a str,
    /// Class of the task, as policies name it.
    pub class: &'a str,
    /// What the gate found in it.
    pub label: &'a Label,
    /// Its length in tokens.
    pub prompt_tokens: u32,
    /// Most tokens of the answer, if that was said.
    pub most_tokens: Option<u32>,
    /// Time for the whole answer, in milliseconds; the policy's if absent.
    pub deadline_ms: Option<u64>,
    /// What it needs.
    pub needs: Needs,
}

/// The state of the world.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    /// True if the network is there.
    pub online: bool,
    /// Charge of the battery, 0 to 1; `None` on mains.
    pub battery: Option<f32>,
    /// True if the device is slowed down by its own heat.
    pub throttled: bool,
    /// Money spent today, in the policy's currency.
    pub spent_today: f64,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            online: true,
            battery: None,
            throttled: false,
            spent_today: 0.0,
        }
    }
}

/// Why a candidate was not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lost {
    /// The policy keeps the request on the device.
    Policy,
    /// There is no connection, or the policy wants none.
    Offline,
    /// Its circuit breaker is open.
    BreakerOpen,
    /// The prompt and the answer do not fit its context.
    ContextLength,
    /// It lacks tools or vision.
    Capability,
    /// It would spend more than the day's or the request's budget.
    Budget,
    /// The answer would come too late.
    Deadline,
    /// The answer would probably not be good enough.
    Quality,
    /// Another place that is good enough costs less.
    Cost,
    /// Nothing meets everything, and another place comes closer.
    SecondBest,
}

/// What a decision was made of. It holds labels and numbers, never text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Receipt {
    /// Version of this form.
    pub version: u32,
    /// The policy's name.
    pub policy: String,
    /// The name of the place that answers; `None` if none may.
    pub chosen: Option<String>,
    /// The task.
    pub task: TaskReceipt,
    /// The candidates, as they were given.
    pub candidates: Vec<CandidateReceipt>,
    /// Rules of the policy that had a say.
    pub rules: Vec<String>,
}

/// The task of a receipt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskReceipt {
    /// Its class.
    pub class: String,
    /// What the gate found.
    pub label: Label,
    /// Length of the prompt, in tokens.
    pub prompt_tokens: u32,
    /// Expected length of the answer, in tokens: the median and the 99th percentile.
    pub answer_tokens: [u32; 2],
    /// Time for the whole answer, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// Least probability of a good answer.
    pub quality_target: f32,
}

/// A candidate of a receipt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CandidateReceipt {
    /// Its name.
    pub name: String,
    /// Time of a long answer (99th percentile of length), in milliseconds.
    pub latency_ms: f32,
    /// Price of a typical answer.
    pub cost: f64,
    /// Energy of a typical answer on this device, in joules.
    pub joules: f64,
    /// Probability of a good answer.
    pub quality: f32,
    /// Why it lost; `None` for the chosen one.
    pub lost: Option<Lost>,
}

/// Decides where requests run.
#[derive(Debug, Clone)]
pub struct Router {
    policy: Policy,
    capability: CapabilityModel,
    /// How long answers were.
    pub lengths: OutputLengths,
}

impl Router {
    /// Charge below which the device saves energy if the cloud may answer.
    const LOW_BATTERY: f32 = 0.15;
    /// How much slower a device that is too hot works.
    const THROTTLED: f32 = 2.0;

    /// A router for a policy.
    pub fn new(policy: Policy, capability: CapabilityModel) -> Self {
        Self {
            policy,
            capability,
            lengths: OutputLengths::default(),
        }
    }

    /// Decides. Nothing is sent and nothing is generated.
    pub fn decide(
        &self,
        task: &Task<'_>,
        candidates: &[Candidate],
        conditions: &Conditions,
    ) -> Receipt {
        let most = task.most_tokens.unwrap_or(u32::MAX);
        let tokens = [0.5, 0.99].map(|q| self.lengths.quantile(task.class, q).min(most));
        let deadline = task.deadline_ms.or(self.policy.budgets.deadline_ms);
        let target = self.policy.quality_target();
        let qualities = self.capability.qualities(task.prompt);
        let mut rules = self.rules(task);
        let mut receipts: Vec<CandidateReceipt> = candidates
            .iter()
            .map(|candidate| {
                let quality = qualities[usize::from(candidate.tier == Tier::Strong)];
                let slowed = if candidate.local && conditions.throttled {
                    Self::THROTTLED
                } else {
                    1.0
                };
                let typical = |prices: [f64; 2]| {
                    (f64::from(task.prompt_tokens) * prices[0] + f64::from(tokens[0]) * prices[1])
                        / 1e6
                };
                CandidateReceipt {
                    name: candidate.name.clone(),
                    latency_ms: candidate.latency.answer_ms(
                        task.prompt_tokens,
                        tokens[1],
                        candidate.load.max(1.0) * slowed,
                    ),
                    cost: typical(candidate.prices),
                    joules: candidate.joules_per_token * f64::from(task.prompt_tokens + tokens[0]),
                    quality: candidate.calibration.apply(quality),
                    lost: None,
                }
            })
            .collect();
        for (candidate, receipt) in candidates.iter().zip(&mut receipts) {
            receipt.lost = self.barred(task, candidate, receipt, tokens[1], conditions, &mut rules);
        }
        let in_time = |receipt: &CandidateReceipt| {
            deadline.is_none_or(|limit| receipt.latency_ms <= limit as f32)
        };
        let low = conditions
            .battery
            .is_some_and(|charge| charge < Self::LOW_BATTERY);
        let chosen = choose(candidates, &receipts, &in_time, target, low);
        for (index, receipt) in receipts.iter_mut().enumerate() {
            if Some(index) != chosen && receipt.lost.is_none() {
                let satisfied =
                    chosen.is_some_and(|_| in_time(receipt) && receipt.quality >= target);
                receipt.lost = Some(if satisfied {
                    Lost::Cost
                } else if !in_time(receipt) {
                    Lost::Deadline
                } else if receipt.quality < target {
                    Lost::Quality
                } else {
                    Lost::SecondBest
                });
            }
        }
        Receipt {
            version: 1,
            policy: self.policy.name().to_string(),
            chosen: chosen.map(|index| candidates[index].name.clone()),
            task: TaskReceipt {
                class: task.class.to_string(),
                label: task.label.clone(),
                prompt_tokens: task.prompt_tokens,
                answer_tokens: tokens,
                deadline_ms: deadline,
                quality_target: target,
            },
            candidates: receipts,
            rules,
        }
    }

    /// The rules of the policy that the label and the class touch.
    fn rules(&self, task: &Task<'_>) -> Vec<String> {
        let name = |value: serde_json::Value| value.as_str().unwrap_or_default().to_string();
        let mut rules: Vec<String> = task
            .label
            .classes
            .iter()
            .map(|class| {
                format!(
                    "classes.{} = {}",
                    name(json!(class)),
                    name(json!(self.policy.rule(*class)))
                )
            })
            .collect();
        if self.policy.place(task.class) != Place::Any {
            rules.push(format!(
                "tasks.{} = {}",
                task.class,
                name(json!(self.policy.place(task.class)))
            ));
        }
        if self.policy.offline.always {
            rules.push("offline.always".into());
        }
        rules
    }

    /// The hard filter that excludes the candidate.
    fn barred(
        &self,
        task: &Task<'_>,
        candidate: &Candidate,
        receipt: &CandidateReceipt,
        answer_tokens: u32,
        conditions: &Conditions,
        rules: &mut Vec<String>,
    ) -> Option<Lost> {
        let budgets = &self.policy.budgets;
        let place = self.policy.place(task.class);
        let provider = self
            .policy
            .providers()
            .iter()
            .find(|provider| provider.name == candidate.name);
        let kept = task.label.local_only
            || task.label.classes.iter().any(|class| match provider {
                Some(provider) => self.policy.rule_at(*class, provider) == Rule::LocalOnly,
                None => true,
            });
        let wanting = (task.needs.tools && !candidate.offers.tools)
            || (task.needs.vision && !candidate.offers.vision);
        let refused = candidate.local
            && place == Place::Cloud
            && (conditions.online || self.policy.offline.refuse_cloud_tasks);
        if (!candidate.local && (provider.is_none() || kept || place == Place::Local)) || refused {
            Some(Lost::Policy)
        } else if !candidate.local && (!conditions.online || self.policy.offline.always) {
            Some(Lost::Offline)
        } else if candidate.breaker_open {
            Some(Lost::BreakerOpen)
        } else if task.prompt_tokens.saturating_add(answer_tokens) > candidate.context_tokens {
            Some(Lost::ContextLength)
        } else if wanting {
            Some(Lost::Capability)
        } else if receipt.cost > 0.0
            && budgets
                .money_per_day
                .is_some_and(|most| conditions.spent_today + receipt.cost > most)
        {
            rules.push("budgets.money_per_day".into());
            Some(Lost::Budget)
        } else if budgets
            .joules_per_request
            .is_some_and(|most| receipt.joules > most)
        {
            rules.push("budgets.joules_per_request".into());
            Some(Lost::Budget)
        } else {
            None
        }
    }
}

/// The cheapest candidate in time and good enough; else the best in time; else the quickest.
fn choose(
    candidates: &[Candidate],
    receipts: &[CandidateReceipt],
    in_time: &dyn Fn(&CandidateReceipt) -> bool,
    target: f32,
    low_battery: bool,
) -> Option<usize> {
    let open = || (0..receipts.len()).filter(|index| receipts[*index].lost.is_none());
    let price = |index: &usize| {
        // With a battery nearly empty the device's own energy is the scarcer good.
        let scarce = low_battery && candidates[*index].local;
        (scarce, receipts[*index].cost, receipts[*index].latency_ms)
    };
    let by_price = |a: &usize, b: &usize| {
        price(a)
            .partial_cmp(&price(b))
            .unwrap_or(std::cmp::Ordering::Equal)
    };
    let good =
        open().filter(|index| in_time(&receipts[*index]) && receipts[*index].quality >= target);
    let best = || {
        open()
            .filter(|index| in_time(&receipts[*index]))
            .max_by(|a, b| {
                receipts[*a]
                    .quality
                    .total_cmp(&receipts[*b].quality)
                    .then(by_price(b, a))
            })
    };
    let quickest =
        || open().min_by(|a, b| receipts[*a].latency_ms.total_cmp(&receipts[*b].latency_ms));
    good.min_by(by_price).or_else(best).or_else(quickest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pii::DataClass;
    use crate::policy::EXAMPLES;

    fn router() -> Router {
        Router::new(
            Policy::parse(EXAMPLES[2].1).unwrap(),
            CapabilityModel::shipped().unwrap(),
        )
    }

    fn device() -> Candidate {
        Candidate {
            name: "device".into(),
            local: true,
            latency: LatencyProfile {
                start_ms: 5.0,
                prompt_ms_per_token: 1.0,
                answer_ms_per_token: 10.0,
            },
            tier: Tier::Weak,
            calibration: Calibration::default(),
            context_tokens: 4096,
            offers: Needs::default(),
            prices: [0.0; 2],
            joules_per_token: 0.1,
            breaker_open: false,
            load: 1.0,
        }
    }

    fn places() -> Vec<Candidate> {
        let cloud = LatencyProfile {
            start_ms: 300.0,
            prompt_ms_per_token: 0.05,
            answer_ms_per_token: 8.0,
        };
        let policy = Policy::parse(EXAMPLES[2].1).unwrap();
        vec![device(), Candidate::of(&policy.providers()[0], cloud)]
    }

    fn task<'a>(label: &'a Label, prompt: &'a str) -> Task<'a> {
        Task {
            prompt,
            class: "chat",
            label,
            prompt_tokens: 50,
            most_tokens: None,
            deadline_ms: None,
            needs: Needs::default(),
        }
    }

    #[test]
    fn the_hard_filters_come_first_and_say_so() {
        let (router, places, public) = (router(), places(), Label::default());
        let private = Label {
            classes: [DataClass::Financial].into(),
            local_only: true,
        };
        let lost = |receipt: &Receipt, index: usize| receipt.candidates[index].lost;
        let kept = router.decide(&task(&private, "x"), &places, &Conditions::default());
        assert_eq!(
            (kept.chosen.as_deref(), lost(&kept, 1)),
            (Some("device"), Some(Lost::Policy))
        );
        assert!(
            kept.rules
                .contains(&"classes.financial = local_only".to_string())
        );
        let offline = Conditions {
            online: false,
            ..Conditions::default()
        };
        assert_eq!(
            lost(&router.decide(&task(&public, "x"), &places, &offline), 1),
            Some(Lost::Offline)
        );
        let seeing = Task {
            needs: Needs {
                vision: true,
                tools: false,
            },
            ..task(&public, "x")
        };
        let seen = router.decide(&seeing, &places, &Conditions::default());
        assert_eq!(
            (seen.chosen.as_deref(), lost(&seen, 0)),
            (Some("example"), Some(Lost::Capability))
        );
        let long = Task {
            prompt_tokens: 5000,
            ..task(&public, "x")
        };
        assert_eq!(
            lost(&router.decide(&long, &places, &Conditions::default()), 0),
            Some(Lost::ContextLength)
        );
        let poor = Conditions {
            spent_today: 19.999_999,
            ..Conditions::default()
        };
        assert_eq!(
            lost(&router.decide(&task(&public, "x"), &places, &poor), 1),
            Some(Lost::Budget)
        );
        let mut broken = places.clone();
        broken[1].breaker_open = true;
        assert_eq!(
            lost(
                &router.decide(&task(&public, "x"), &broken, &Conditions::default()),
                1
            ),
            Some(Lost::BreakerOpen)
        );
        let unknown = Candidate {
            name: "stranger".into(),
            ..places[1].clone()
        };
        assert_eq!(
            lost(
                &router.decide(&task(&public, "x"), &[unknown], &Conditions::default()),
                0
            ),
            Some(Lost::Policy)
        );
    }

    #[test]
    fn then_deadline_quality_cost_and_battery() {
        let (router, mut places, public) = (router(), places(), Label::default());
        places[0].calibration = Calibration::starting_at(1.0);
        let good = router.decide(&task(&public, "x"), &places, &Conditions::default());
        assert_eq!(
            (good.chosen.as_deref(), good.candidates[1].lost),
            (Some("device"), Some(Lost::Cost))
        );
        let low = Conditions {
            battery: Some(0.1),
            ..Conditions::default()
        };
        places[1].calibration = Calibration::starting_at(1.0);
        assert_eq!(
            router
                .decide(&task(&public, "x"), &places, &low)
                .chosen
                .as_deref(),
            Some("example")
        );
        places[0].calibration = Calibration::starting_at(-1.0);
        let bad = router.decide(&task(&public, "x"), &places, &Conditions::default());
        assert_eq!(
            (bad.chosen.as_deref(), bad.candidates[0].lost),
            (Some("example"), Some(Lost::Quality))
        );
        let hurried = Task {
            deadline_ms: Some(5500),
            ..task(&public, "x")
        };
        let late = router.decide(&hurried, &places, &Conditions::default());
        assert_eq!(
            (late.chosen.as_deref(), late.candidates[0].lost),
            (Some("example"), Some(Lost::Deadline))
        );
        // A short answer is in time here, too.
        let short = Task {
            most_tokens: Some(100),
            ..hurried
        };
        let receipt = router.decide(&short, &places, &Conditions::default());
        assert_eq!(receipt.task.answer_tokens, [100, 100]);
        assert_ne!(receipt.candidates[0].lost, Some(Lost::Deadline));
    }

    #[test]
    fn a_receipt_holds_no_text() {
        let (router, public) = (router(), Label::default());
        let receipt = router.decide(
            &task(&public, "zebra crossing"),
            &places(),
            &Conditions::default(),
        );
        let json = serde_json::to_string(&receipt).unwrap();
        assert!(!json.contains("zebra") && json.contains("\"chosen\""));
    }
}
