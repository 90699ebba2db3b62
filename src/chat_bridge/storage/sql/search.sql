-- name: search_limits
-- For the rest of the transaction: a search is planned for its own words and may not take long.
select set_config('plan_cache_mode', 'force_custom_plan', true), set_config('statement_timeout', $1, true);

-- name: search_index
-- The index that searches use; no row: search is off. $1 is how its name begins, after which comes its language.
select i.indexrelid as id, substr(c.relname, length($1) + 1) as language
from pg_index i
join pg_class c on c.oid = i.indexrelid
where i.indrelid = to_regclass('messages') and i.indisvalid and starts_with(c.relname, $1)
order by i.indexrelid desc
limit 1;

-- name: search_indexes
-- All indexes of searches, of other releases too ($1 is how their names begin), and how far those are that are being
-- built.
select c.relname as name, i.indisvalid as ready, pg_relation_size(c.oid) as bytes, p.pid is not null as building, p.phase,
  case when p.blocks_total > 0 then p.blocks_done::float / p.blocks_total end as share
from pg_index i
join pg_class c on c.oid = i.indexrelid
left join pg_stat_progress_create_index p on p.index_relid = c.oid and p.datname = current_database()
where i.indrelid = to_regclass('messages') and starts_with(c.relname, $1)
order by i.indisvalid desc, c.oid desc;

-- name: search_conversations
-- The conversations that a search is limited to by the platform's id of it, or by a session.
select distinct conversation_id
from sessions
where ($1::uuid is null or id = $1)
  and ($2::text is null or platform_conversation_id = $2)
  and ($3::text is null or platform = $3)
  and ($4::text is null or account = $4)
  and ($5::uuid is null or conversation_id = $5);
