import random

import pytest

from fracbits_jax.run.events import Events, read


@pytest.mark.parametrize('seed', range(5))
def test_after_any_number_of_attempts_each_step_has_one_event_that_of_the_last(seed, tmp_path):
  rng, step, expected = random.Random(seed), 0, {}
  for attempt in range(6):
    events = Events(tmp_path)
    step = rng.randint(0, step)
    events.rewind(step)
    expected = {key: value for key, value in expected.items() if key[1] <= step}
    for _ in range(rng.randint(0, 4)):
      step += 1
      events.write({'loss': float(attempt), 'bits/a': step / 2}, step)
      expected |= {('loss', step): float(attempt), ('bits/a', step): step / 2}
    events.close()
  got = [((name, step), value) for name, step, value in read(tmp_path)]
  assert len(got) == len(expected)
  assert dict(got) == expected


def test_a_file_that_was_cut_is_read_and_rewound_up_to_there(tmp_path):
  events = Events(tmp_path)
  for step in (1, 2, 3):
    events.write({'loss': 1.0}, step)
  events.close()
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:-5])
  assert [step for _, step, _ in read(tmp_path)] == [1, 2]
  events = Events(tmp_path)
  events.rewind(9)
  events.write({'loss': 2.0}, 3)
  events.close()
  assert [step for _, step, _ in read(tmp_path)] == [1, 2, 3]
