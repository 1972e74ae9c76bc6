"use strict";
// The page of `fsq serve`: asks for plans, shows them, tells what came of them. Every text is set as text, never as HTML.

const element = (name) => document.getElementById(name);

function made(tag, text, className) {
  const it = document.createElement(tag);
  if (text !== undefined) it.textContent = text;
  if (className) it.className = className;
  return it;
}

function say(text, isWrong) {
  element("said").textContent = text;
  element("said").className = isWrong ? "wrong" : "";
}

async function ask(path, body) {
  const headers = { "content-type": "application/json" };
  const key = element("key").value.trim();
  if (key) headers.authorization = `Bearer ${key}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? `status ${response.status}`);
  return answer;
}

function percent(value) {
  return value === null ? "–" : `${Math.round(100 * value)} %`;
}

function odds(plan) {
  const grid = made("div", undefined, "odds");
  for (const [name, value] of [["stated", plan.stated_expectation], ["estimate", plan.estimate]]) {
    const meter = made("meter");
    meter.min = 0;
    meter.max = 1;
    meter.value = value ?? 0;
    meter.setAttribute("aria-label", `${name} ${percent(value)}`);
    grid.append(made("span", name), meter, made("span", percent(value)));
  }
  return grid;
}

function outcome(plan) {
  const row = made("div", undefined, "row");
  row.append(made("span", "What came of it?"));
  for (const [name, value] of [["success", 1], ["failure", 0]]) {
    const button = made("button", name);
    button.onclick = async () => {
      try {
        await ask("v1/outcomes", { prediction_id: plan.prediction_id, outcome: value });
        row.replaceChildren(made("span", `On record: ${name}.`));
      } catch (error) {
        say(error.message, true);
      }
    };
    row.append(button);
  }
  return row;
}

function shown(plan, isChosen) {
  const card = made("article", undefined, isChosen ? "chosen" : "");
  const title = plan.action === null ? "malformed" : plan.action;
  const heading = made("p");
  heading.append(made("code", title), isChosen ? " (chosen)" : "");
  card.append(heading);
  if (plan.action === null) {
    card.append(made("p", plan.error), made("code", plan.text));
    return card;
  }
  const rollout = made("ol");
  for (const state of plan.rollout) rollout.append(made("li", state));
  card.append(odds(plan), rollout);
  if (plan.prediction_id) card.append(outcome(plan));
  return card;
}

element("form").onsubmit = async (event) => {
  event.preventDefault();
  const button = event.submitter ?? element("form").querySelector("button");
  button.disabled = true;
  say("Thinking …");
  try {
    const body = { state: element("state").value, plans: Number(element("plans").value) };
    const answer = await ask("v1/foresight", body);
    element("policy").textContent = answer.model;
    element("found").replaceChildren(...answer.plans.map((it) => shown(it, it.index === answer.chosen)));
    say(answer.chosen === null ? `Nothing is chosen: ${answer.reason}.` : "");
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
};

ask("v1/models").then(
  (answer) => { element("policy").textContent = answer.data[0].id; },
  () => { element("policy").textContent = "asks for a key"; },
);
