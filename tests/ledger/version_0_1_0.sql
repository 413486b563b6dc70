-- A database of version 0.1.0, made and filled by that version; then `sqlite3 .dump`.
BEGIN TRANSACTION;
CREATE TABLE accounts (
	id VARCHAR(36) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	balance BIGINT NOT NULL, 
	suspended BOOLEAN NOT NULL, 
	created_ms BIGINT NOT NULL, 
	waiver_version TEXT, 
	waiver_text TEXT, 
	waiver_ms BIGINT, 
	PRIMARY KEY (id), 
	CONSTRAINT accounts_balance_not_negative CHECK (balance >= 0), 
	CONSTRAINT accounts_name_length CHECK (length(name) BETWEEN 1 AND 64), 
	UNIQUE (name)
);
INSERT INTO "accounts" VALUES('01a1fc6e-d054-73ff-95e1-7c424e6a5773','operator',1000000,0,1763000002000,NULL,NULL,NULL);
INSERT INTO "accounts" VALUES('01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','ann',8000,0,1763000004000,'1','The account holder asks for images without a visible AI label, knows the duties that the law puts on whoever publishes AI-generated content, and takes on the duty to label them before they are published. Records of such images are kept for at least six months.',1763000008000);
INSERT INTO "accounts" VALUES('01a1fc6e-d063-7b10-b680-a80ad0ed3278','鲍勃',550,0,1763000006000,NULL,NULL,NULL);
CREATE TABLE images (
	id VARCHAR(36) NOT NULL, 
	task_id VARCHAR(36) NOT NULL, 
	account_id VARCHAR(36) NOT NULL, 
	idx INTEGER NOT NULL, 
	format VARCHAR(4) NOT NULL, 
	width INTEGER NOT NULL, 
	height INTEGER NOT NULL, 
	bytes BIGINT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	seed BIGINT NOT NULL, 
	blob_key TEXT NOT NULL, 
	label_visible BOOLEAN NOT NULL, 
	label_metadata BOOLEAN NOT NULL, 
	created_ms BIGINT NOT NULL, 
	expires_ms BIGINT NOT NULL, 
	deleted_ms BIGINT, 
	PRIMARY KEY (id), 
	UNIQUE (task_id, idx), 
	FOREIGN KEY(task_id) REFERENCES tasks (id), 
	FOREIGN KEY(account_id) REFERENCES accounts (id)
);
INSERT INTO "images" VALUES('01a1fc6e-d079-7085-a7a4-7468932d0bc3','01a1fc6e-d072-7bb3-adca-e03c4b43db1e','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa',0,'png',1024,1024,4321,'abababababababababababababababababababababababababababababababab',7,'a/01a1fc6e-d072-7bb3-adca-e03c4b43db1e/0.png',1,1,1763000018000,1765592019000,NULL);
INSERT INTO "images" VALUES('01a1fc6e-d079-70fe-afdf-c0558c77e756','01a1fc6e-d072-7bb3-adca-e03c4b43db1e','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa',1,'png',1024,1024,4321,'abababababababababababababababababababababababababababababababab',8,'a/01a1fc6e-d072-7bb3-adca-e03c4b43db1e/1.png',1,1,1763000020000,1765592021000,NULL);
CREATE TABLE redeem_codes (
	digest VARCHAR(64) NOT NULL, 
	characters BIGINT NOT NULL, 
	created_ms BIGINT NOT NULL, 
	account_id VARCHAR(36), 
	used_ms BIGINT, 
	PRIMARY KEY (digest), 
	CONSTRAINT redeem_codes_characters CHECK (characters BETWEEN 1 AND 1000000000000000), 
	CONSTRAINT redeem_codes_used CHECK ((account_id IS NULL) = (used_ms IS NULL)), 
	FOREIGN KEY(account_id) REFERENCES accounts (id)
);
INSERT INTO "redeem_codes" VALUES('c836364a9e36e9770f118eacc7543c5606d2895a559fbb1c01493872614c0a3d',500,1763000012000,'01a1fc6e-d063-7b10-b680-a80ad0ed3278',1763000013000);
INSERT INTO "redeem_codes" VALUES('bbb2d2284ad428df33993ea61cf9ff6b79302360b6cf698eb36cb59be10af616',500,1763000012000,NULL,NULL);
CREATE TABLE tasks (
	id VARCHAR(36) NOT NULL, 
	account_id VARCHAR(36) NOT NULL, 
	token_id VARCHAR(32), 
	dialect TEXT NOT NULL, 
	model TEXT NOT NULL, 
	state VARCHAR(9) NOT NULL, 
	hold_id VARCHAR(36), 
	epoch INTEGER NOT NULL, 
	lease_until_ms BIGINT NOT NULL, 
	request JSON NOT NULL, 
	result JSON, 
	error JSON, 
	end_user TEXT, 
	charged BIGINT NOT NULL, 
	created_ms BIGINT NOT NULL, 
	finished_ms BIGINT, 
	PRIMARY KEY (id), 
	CONSTRAINT tasks_state CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')), 
	CONSTRAINT tasks_finished CHECK ((state IN ('queued', 'running')) = (finished_ms IS NULL)), 
	CONSTRAINT tasks_charged CHECK (charged >= 0), 
	FOREIGN KEY(account_id) REFERENCES accounts (id), 
	FOREIGN KEY(token_id) REFERENCES tokens (id), 
	UNIQUE (hold_id), 
	FOREIGN KEY(hold_id) REFERENCES transfers (id)
);
INSERT INTO "tasks" VALUES('01a1fc6e-d072-7bb3-adca-e03c4b43db1e','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','20ceaa4c1a3d3b859585f0a65e1b7b58','openai','pocket','succeeded','01a1fc6e-d072-7c0a-8bf2-abe5aef4f419',1,1763000047000,'{"prompt": "\u4e00\u53ea\u732b", "n": 2}','{"revised_prompt": null}',NULL,'user-123',4000,1763000016000,1763000022000);
INSERT INTO "tasks" VALUES('01a1fc6e-d07c-7283-8d76-696df0b6af4d','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','20ceaa4c1a3d3b859585f0a65e1b7b58','openai','pocket','failed','01a1fc6e-d07c-72d1-b3cb-8233eaddf5d9',1,1763000053000,'{"prompt": "\u4e00\u53ea\u732b", "n": 2}',NULL,'{"code": "content_refused", "message": "No."}',NULL,0,1763000023000,1763000024000);
INSERT INTO "tasks" VALUES('01a1fc6e-d07e-7995-9b54-98ef49d48f58','01a1fc6e-d063-7b10-b680-a80ad0ed3278',NULL,'openai','pocket','failed','01a1fc6e-d07e-79d9-af72-2456d37662ab',1,1763000055000,'{"prompt": "\u4e00\u53ea\u732b", "n": 2}',NULL,'{"code": "server_fault", "message": "The task''s server stopped before it was done."}',NULL,0,1763000025000,1763000086000);
INSERT INTO "tasks" VALUES('01a1fc6e-d089-7c69-ae0b-259b762cf623','01a1fc6e-d063-7b10-b680-a80ad0ed3278',NULL,'openai','pocket','queued',NULL,1,1763000117000,'{"prompt": "\u4e00\u53ea\u732b", "n": 2}',NULL,NULL,NULL,0,1763000087000,NULL);
INSERT INTO "tasks" VALUES('01a1fc6e-d091-7b68-9d7e-0e9894e53498','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','20ceaa4c1a3d3b859585f0a65e1b7b58','openai','pocket','running','01a1fc6e-d091-7bb9-b2be-6289af2cfd25',1,1763000119000,'{"prompt": "\u4e00\u53ea\u732b", "n": 2}',NULL,NULL,NULL,0,1763000088000,NULL);
INSERT INTO "tasks" VALUES('01a1fc6e-d099-7eb4-af7c-49d8b3c81062','01a1fc6e-d063-7b10-b680-a80ad0ed3278',NULL,'openai','pocket','queued','01a1fc6e-d099-7f09-892a-033c36733c79',1,1763000120000,'{"prompt": "\u4e00\u53ea\u732b", "n": 2}',NULL,NULL,NULL,0,1763000090000,NULL);
CREATE TABLE tokens (
	id VARCHAR(32) NOT NULL, 
	account_id VARCHAR(36) NOT NULL, 
	key_version INTEGER NOT NULL, 
	name TEXT, 
	created_ms BIGINT NOT NULL, 
	expires_ms BIGINT, 
	revoked_ms BIGINT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(account_id) REFERENCES accounts (id)
);
INSERT INTO "tokens" VALUES('491b223589208e5913734516f3702ba1','01a1fc6e-d054-73ff-95e1-7c424e6a5773',1,'first',1763000001000,NULL,NULL);
INSERT INTO "tokens" VALUES('20ceaa4c1a3d3b859585f0a65e1b7b58','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa',1,'first',1763000009000,NULL,NULL);
INSERT INTO "tokens" VALUES('78742ed11313965ca69f49597f70ecc9','01a1fc6e-d063-7b10-b680-a80ad0ed3278',1,NULL,1763000010000,1800000000000,1763000011000);
CREATE TABLE transfers (
	id VARCHAR(36) NOT NULL, 
	account_id VARCHAR(36) NOT NULL, 
	kind VARCHAR(6) NOT NULL, 
	amount BIGINT NOT NULL, 
	hold_id VARCHAR(36), 
	task_id VARCHAR(36), 
	reason TEXT, 
	created_ms BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT transfers_kind CHECK (kind IN ('grant', 'adjust', 'hold', 'post', 'void', 'expire')), 
	CONSTRAINT transfers_amount CHECK (amount BETWEEN -1000000000000000 AND 1000000000000000 AND (amount > 0 OR (kind = 'adjust' AND amount <> 0))), 
	CONSTRAINT transfers_resolve CHECK ((kind IN ('post', 'void', 'expire')) = (hold_id IS NOT NULL)), 
	CONSTRAINT transfers_task CHECK ((kind IN ('grant', 'adjust')) = (task_id IS NULL)), 
	FOREIGN KEY(account_id) REFERENCES accounts (id), 
	UNIQUE (hold_id), 
	FOREIGN KEY(hold_id) REFERENCES transfers (id)
);
INSERT INTO "transfers" VALUES('01a1fc6e-d05a-73d6-a584-95819a52b0c3','01a1fc6e-d054-73ff-95e1-7c424e6a5773','grant',1000000,NULL,NULL,'first characters',1763000003000);
INSERT INTO "transfers" VALUES('01a1fc6e-d062-7974-9ebf-fccce6238fb8','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','grant',15000,NULL,NULL,'first characters',1763000005000);
INSERT INTO "transfers" VALUES('01a1fc6e-d063-7ed8-bc84-02e3590de1df','01a1fc6e-d063-7b10-b680-a80ad0ed3278','grant',100,NULL,NULL,'first characters',1763000007000);
INSERT INTO "transfers" VALUES('01a1fc6e-d06f-7013-be82-276f59c6332a','01a1fc6e-d063-7b10-b680-a80ad0ed3278','grant',500,NULL,NULL,'redeem code',1763000014000);
INSERT INTO "transfers" VALUES('01a1fc6e-d072-7212-a7a5-f8ab788cfe5b','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','adjust',-1000,NULL,NULL,'correction',1763000015000);
INSERT INTO "transfers" VALUES('01a1fc6e-d072-7c0a-8bf2-abe5aef4f419','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','hold',5000,NULL,'01a1fc6e-d072-7bb3-adca-e03c4b43db1e',NULL,1763000016000);
INSERT INTO "transfers" VALUES('01a1fc6e-d07a-7196-968e-16caee3574c3','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','post',4000,'01a1fc6e-d072-7c0a-8bf2-abe5aef4f419','01a1fc6e-d072-7bb3-adca-e03c4b43db1e',NULL,1763000022000);
INSERT INTO "transfers" VALUES('01a1fc6e-d07c-72d1-b3cb-8233eaddf5d9','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','hold',5000,NULL,'01a1fc6e-d07c-7283-8d76-696df0b6af4d',NULL,1763000023000);
INSERT INTO "transfers" VALUES('01a1fc6e-d07d-7d56-a8a7-5148054af8d3','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','void',5000,'01a1fc6e-d07c-72d1-b3cb-8233eaddf5d9','01a1fc6e-d07c-7283-8d76-696df0b6af4d',NULL,1763000024000);
INSERT INTO "transfers" VALUES('01a1fc6e-d07e-79d9-af72-2456d37662ab','01a1fc6e-d063-7b10-b680-a80ad0ed3278','hold',10,NULL,'01a1fc6e-d07e-7995-9b54-98ef49d48f58',NULL,1763000025000);
INSERT INTO "transfers" VALUES('01a1fc6e-d087-7207-b3a2-f6f478dde589','01a1fc6e-d063-7b10-b680-a80ad0ed3278','expire',10,'01a1fc6e-d07e-79d9-af72-2456d37662ab','01a1fc6e-d07e-7995-9b54-98ef49d48f58',NULL,1763000086000);
INSERT INTO "transfers" VALUES('01a1fc6e-d091-7bb9-b2be-6289af2cfd25','01a1fc6e-d062-74a0-b247-0ddaf2aa40fa','hold',2000,NULL,'01a1fc6e-d091-7b68-9d7e-0e9894e53498',NULL,1763000088000);
INSERT INTO "transfers" VALUES('01a1fc6e-d099-7f09-892a-033c36733c79','01a1fc6e-d063-7b10-b680-a80ad0ed3278','hold',50,NULL,'01a1fc6e-d099-7eb4-af7c-49d8b3c81062',NULL,1763000090000);
CREATE INDEX ix_tokens_account_id ON tokens (account_id);
CREATE INDEX transfers_account ON transfers (account_id, id);
CREATE TRIGGER transfers_no_update BEFORE UPDATE ON transfers BEGIN SELECT RAISE(ABORT, 'transfers are immutable'); END;
CREATE TRIGGER transfers_no_delete BEFORE DELETE ON transfers BEGIN SELECT RAISE(ABORT, 'transfers are immutable'); END;
CREATE INDEX tasks_account ON tasks (account_id, id);
CREATE INDEX tasks_open ON tasks (lease_until_ms) WHERE state IN ('queued', 'running');
CREATE INDEX ix_images_expires_ms ON images (expires_ms);
COMMIT;
