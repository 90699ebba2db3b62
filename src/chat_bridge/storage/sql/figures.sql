-- name: figures
-- What waits, for the metrics. At most $1 rows of each kind are looked at, found by an index that is empty while all
-- is well, so that this costs little however much there is.
select w.waiting, w.waiting_seconds, o.outbox, o.outbox_seconds, o.overdue_seconds, r.dead_replies, m.dead_messages
from (
  select count(*) as waiting, coalesce(extract(epoch from clock_timestamp() - min(s.pending_since)), 0) as waiting_seconds
  from (select conversation_id, session_id from waiting limit $1) w
  join sessions s on s.conversation_id = w.conversation_id and s.id = w.session_id
  where not exists (select from turns t where t.conversation_id = w.conversation_id and t.status = 'running')
) w
cross join (
  select count(*) as outbox,
    coalesce(extract(epoch from clock_timestamp() - min(d.give_up_at) + interval '24 hours'), 0) as outbox_seconds,
    greatest(extract(epoch from clock_timestamp() - min(d.next_attempt_at)), 0) as overdue_seconds
  from (
    select give_up_at, next_attempt_at
    from deliveries
    where status in ('pending', 'sending')
    order by next_attempt_at
    limit $1
  ) d
) o
cross join (
  select count(*) as dead_replies
  from (select from deliveries where status in ('unknown', 'failed') order by next_attempt_at desc limit $1) d
) r
cross join (
  select count(*) as dead_messages
  from (select metadata from messages where status = 'failed' order by created_at desc limit $1) m
  where not coalesce(m.metadata ?| '{purged,replayed_as}', false)
) m;
