-- name: finish_deliveries
-- Record what the platform answered: receipts in bulk, fenced by the attempt that sent them.
update deliveries d
set status = i.status,
  platform_message_id = coalesce(i.platform_message_id, d.platform_message_id),
  error = i.error,
  next_attempt_at = clock_timestamp() + make_interval(secs => i.retry_seconds),
  sent_at = case when i.status = 'sent' then clock_timestamp() else d.sent_at end
from unnest($1::uuid[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::double precision[], $8::integer[])
  as i (conversation_id, seq, part, status, platform_message_id, error, retry_seconds, attempt)
where d.conversation_id = i.conversation_id and d.seq = i.seq and d.part = i.part
  and d.status = 'sending' and d.attempts = i.attempt;

-- name: due_deliveries
-- Take deliveries that are due: waiting for a retry, or left in `sending` by a worker that died. Those of a platform
-- without idempotency keys ($2 lists the ones with) may have been sent: they become `unknown`, for a person to see.
with due as (
  select d.conversation_id, d.seq, d.part, s.platform, s.account, s.platform_conversation_id, s.thread,
    m.id, m.content_text, d.status
  from deliveries d
  join messages m on m.conversation_id = d.conversation_id and m.seq = d.seq
  join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
  where d.status in ('pending', 'sending') and d.next_attempt_at <= clock_timestamp()
  order by d.next_attempt_at, d.conversation_id, d.seq, d.part
  limit $1
  for update of d skip locked
)
update deliveries d
set status = case when due.status = 'sending' and due.platform <> all ($2::text[]) then 'unknown' else 'sending' end,
  error = case when due.status = 'sending' then 'the sender stopped before it heard an answer' else d.error end,
  attempts = d.attempts + 1,
  next_attempt_at = clock_timestamp() + interval '1 minute'
from due
where d.conversation_id = due.conversation_id and d.seq = due.seq and d.part = due.part
returning d.conversation_id, d.seq, d.part, d.status, d.attempts, d.idempotency_key, due.platform, due.account,
  due.platform_conversation_id, due.thread, due.id, due.content_text;
